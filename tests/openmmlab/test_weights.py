"""Reading checkpoints, converting those of older versions, and the hook that loads them."""

import logging
import re
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from safetensors.torch import save_file as save_safetensors
from torch import nn

from dcnzoo.openmmlab.checkpoints import CheckpointError, load_file
from dcnzoo.openmmlab.hooks.load_checkpoint import LoadCheckpointHook
from dcnzoo.openmmlab.weights import convert, find_weights, load_state, load_weights
from tests.helpers.training import make_runner
from tests.helpers.variants import build, settings_of


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def weights(model):
    """Random weights for the model: all values differ, so a wrong assignment is noticed."""
    generator = torch.Generator().manual_seed(1)
    return OrderedDict(
        (key, torch.randn(value.shape, generator=generator) if value.is_floating_point() else value)
        for key, value in model.state_dict().items()
    )


def assert_same(got, want):
    assert set(got) == set(want)
    for key, value in want.items():
        assert torch.equal(got[key], value), key


# Reading


def read_checkpoint(path):
    checkpoint = load_file(path)
    return {"meta": checkpoint.get("meta") or {}, "state_dict": find_weights(checkpoint, path)}


def save(path, **content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("number", "dtype"), [(float("nan"), torch.float32), (-float("inf"), torch.bfloat16)]
)
def test_weights_that_are_not_finite(tmp_path, number, dtype):
    good = {"conv.weight": torch.ones(2, 3).to(dtype), "bn.num_batches_tracked": torch.tensor(3)}
    bad = {**good, "bn.running_var": torch.tensor([1.0, number]).to(dtype)}
    whole, broken = tmp_path / "x.pth", tmp_path / "y.pth"
    assert_same(read_checkpoint(save(whole, state_dict=good))["state_dict"], good)
    read_checkpoint(save(whole, state_dict=good, model=bad))  # not loaded
    save(broken, state_dict=good, ema_state_dict=bad)
    save_safetensors(bad, tmp_path / "y.safetensors")
    for path in (broken, save(tmp_path / "z.pth", **bad), tmp_path / "y.safetensors"):
        with pytest.raises(CheckpointError, match=rf"^{path}: .*bn\.running_var"):
            read_checkpoint(path)


# Older names


def renamed(weights, pattern, replacement):
    return OrderedDict((re.sub(pattern, replacement, key), value) for key, value in weights.items())


BESIDE = (r"\.conv_offset\.", "_offset.")  # the layer


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    # two renamings from other implementations, one from a parallel wrapper
    [BESIDE, (r"\.conv_offset\.", ".conv_offset_mask."), (r"^", "module.")],
)
@pytest.mark.parametrize(
    "options",
    [{"dcn": {"type": "DCNv2", "deform_groups": 4}}, {"dcn": "v1", "stage_with_dcn": (True, True, True)}],
)
def test_old_names(pattern, replacement, options):
    expected = build(**options).state_dict()
    old = renamed(expected, pattern, replacement)
    changed = [(o, n) for o, n in zip(old, expected, strict=True) if o != n]
    found, summary = convert(old, expected)
    assert_same(found, expected)
    assert summary == f"{len(changed)} parameters renamed, such as {' to '.join(changed[0])}"
    found, summary = convert(expected, expected)
    assert summary == "" and list(found) == list(expected)
    assert found._metadata == expected._metadata  # module versions


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "teacher."])
def test_prefixes_of_all_names(model, prefix):
    expected = model.state_dict()
    file = renamed(expected, "^", prefix)
    file["steps"] = torch.tensor(3)  # the counter of an average; counters are no weights
    found, summary = convert(file, expected)
    found.pop("steps")
    assert_same(found, expected)
    assert "renamed, such as" in summary
    own = {f"{prefix}{key}": value for key, value in expected.items()}  # a model with these names
    assert convert(own, own) == (own, "")


# Loading


def test_load(tmp_path, weights):
    """Tensors that are not learned may be missing or superfluous."""
    path = save(tmp_path / "x.pth", state_dict=renamed(weights, *BESIDE), meta={"a": 1})
    target = build()
    meta, report = load_weights(target, path)
    assert meta == {"a": 1}
    assert_same(target.state_dict(), weights)
    assert report.startswith("6 parameters renamed") and "layer1.0.conv2.conv_offset.weight" in report
    learnt = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert learnt.keys() < weights.keys()
    extra = {"ema_backbone_conv1_weight": torch.ones(2), "head.position_ids": torch.arange(3)}
    assert load_weights(target, save(path, state_dict={**learnt, **extra})) == ({}, "")
    linear, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert load_weights(other, save(path, state_dict=linear.state_dict())) == ({}, "")
    assert torch.equal(other.weight, linear.weight)


def test_missing_and_superfluous(tmp_path, weights):
    few = OrderedDict((k, v) for k, v in weights.items() if "conv_offset" not in k)
    path = save(tmp_path / "x.pth", state_dict={**few, "teacher.weight": torch.ones(1)})
    target = build()
    with pytest.raises(
        CheckpointError, match=f"^{path}: .*conv2.*missing.*teacher.weight.*allow_partial=True"
    ):
        load_weights(target, path)
    _, report = load_weights(target, path, allow_partial=True)
    assert "teacher.weight" in report
    key = "neck.fpn_convs.0.conv.weight"
    assert torch.equal(target.state_dict()[key], few[key])
    save(path, state_dict={"fc.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="missing"):  # nothing fits
        load_weights(target, path, allow_partial=True)
    changed = {**weights, "roi_head.bbox_head.fc_cls.bias": torch.zeros(81)}
    with pytest.raises(CheckpointError, match=r"roi_head\.bbox_head\.fc_cls\.bias"):
        load_weights(target, save(path, state_dict=changed))


@pytest.mark.parametrize("classes", [1, 7])
def test_fine_tuning_for_other_classes(weights, classes):
    target, settings = build(classes), settings_of(classes)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    report = load_state(target, weights, "x.pth", settings=settings, fine_tune=True)
    assert "6 parameters" in report and "fc_cls" in report
    heads = ("roi_head.bbox_head.fc_", "roi_head.mask_head.conv_logits")
    for key, value in target.state_dict().items():
        kept = key.startswith(heads)
        assert torch.equal(value, before[key] if kept else weights[key]), key

    with pytest.raises(CheckpointError, match="num_classes"):
        load_state(target, weights, "x.pth", settings=settings)
    # other differences are still errors
    for key in ("backbone.layer1.0.conv1.weight", "rpn_head.rpn_cls.weight"):
        narrow = {**weights, key: weights[key][:1]}
        with pytest.raises(CheckpointError, match=key):
            load_state(target, narrow, "x.pth", settings=settings, fine_tune=True)
    boxes = {key: value for key, value in target.state_dict().items() if "mask_head" not in key}
    del target.roi_head.mask_head  # a training of boxes leaves out the mask head of its start
    load_state(target, weights, "x.pth", settings=settings, fine_tune=True)
    assert {*boxes} == {*target.state_dict()}
    target = build(3)
    del target.roi_head.mask_head
    with pytest.raises(CheckpointError, match=r"mask_head.*not used"):
        load_state(target, weights, "x.pth", settings=settings_of(3))
    target = build(classes)
    fewer = {key: value for key, value in weights.items() if "mask_head" not in key}
    with pytest.raises(CheckpointError, match=r"mask_head.*missing"):
        load_state(target, fewer, "x.pth", settings=settings, fine_tune=True)


# The hook


def runner_of(model, resume=False):
    return SimpleNamespace(
        model=model, cfg={}, hooks=[], _resume=resume, _load_from="x.pth", logger=logging.getLogger("test")
    )


def test_wrapped_models(weights):
    target = build()
    runner = runner_of(nn.DataParallel(module=target))
    LoadCheckpointHook().after_load_checkpoint(runner, dict(weights))  # only weights, without state_dict
    assert_same(target.state_dict(), weights)


class TwoLayers(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, num_classes)


def test_moving_averages_start_from_the_loaded_weights(tmp_path, monkeypatch):
    """EMAHook copies the model before it is initialised, so its average would keep the head of that copy."""
    # Registered for this test only: the check of configs accepts every key in the package of a registered
    # class, which here includes keys that other tests misspell.
    monkeypatch.setitem(MODELS.module_dict, "TwoLayers", TwoLayers)
    source, target = TwoLayers(5), TwoLayers(2)
    torch.save({"state_dict": source.state_dict(), "meta": {}}, tmp_path / "x.pth")
    average, load = EMAHook(), LoadCheckpointHook(is_training=True)
    options = dict(load_from=str(tmp_path / "x.pth"), custom_hooks=[average, load])
    runner = make_runner(tmp_path, "ema", target, **options)
    runner.cfg.model = {"type": "TwoLayers", "num_classes": 2}
    average.before_run(runner)
    nn.init.constant_(target.head.weight, 7.0)
    runner.load_or_resume()
    assert torch.equal(target.body.weight, source.body.weight)
    assert (target.head.weight == 7).all()
    assert_same(average.ema_model.module.state_dict(), target.state_dict())


def test_moving_averages_of_a_resumed_run(tmp_path):
    weights, averages = TwoLayers(2).state_dict(), TwoLayers(2).state_dict()
    target = TwoLayers(2)
    average = EMAHook()
    runner = make_runner(tmp_path, "ema again", target, custom_hooks=[average, LoadCheckpointHook()])
    average.before_run(runner)
    runner._resume = True
    state = {f"module.{key}": value for key, value in weights.items()} | {"steps": torch.tensor(3)}
    content = {"state_dict": averages, "ema_state_dict": state, "meta": {"epoch": 1, "iter": 3}}
    torch.save({**content, "message_hub": {}, "optimizer": {}}, tmp_path / "x.pth")
    runner.load_checkpoint(str(tmp_path / "x.pth"))
    assert_same(target.state_dict(), weights)
    assert_same(average.ema_model.module.state_dict(), averages)
