"""InternImage and FlashInternImage: the official checkpoints' names, their equations and their training."""

import hashlib
import re
import warnings

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

import dcnzoo.models  # noqa: F401  registers the backbones
from dcnzoo import backbones
from dcnzoo.backbones.intern_image import DropPath
from tests.helpers.modules import randomise, shapes

TINY = dict(channels=16, depths=(1, 2, 2, 1), groups=(1, 2, 4, 8), layer_scale=1.0)
KINDS = ("InternImage", "FlashInternImage")
both = pytest.mark.parametrize("kind", KINDS)


def build(kind, **options):
    return MODELS.build(dict(type=kind, **{**TINY, **options}))


# digests of the parameters' sorted names and shapes in the authors' detectors
OFFICIAL = {
    "internimage_t": "7907b830115279e9",
    "internimage_s": "90eb85ce34b48c86",
    "internimage_b": "b907a3fc3337ec9d",
    "internimage_l": "ff6b9655df66c7d4",
    "internimage_xl": "8cc8bea809f47f18",
    "flash_internimage_t": "1ade9c8ea1485c76",
    "flash_internimage_s": "57c77ffc033cc147",
    "flash_internimage_l": "8e00bc5950e4e047",
}


@pytest.mark.parametrize(("name", "digest"), OFFICIAL.items())
def test_state_dict_is_the_official_one(name, digest):
    with torch.device("meta"):
        model = getattr(backbones, name)(layer_scale=1.0)
    assert hashlib.sha256(repr(sorted(shapes(model).items())).encode()).hexdigest()[:16] == digest


LARGEST = dict(layer_scale=None, dw_kernel_size=5, res_post_norm=True, level2_post_norm=True)
LARGEST |= dict(center_feature_scale=True)


def test_the_options_of_the_largest():
    """InternImage-H: depthwise 5×5, norms before and after branches and after blocks, blended centres."""
    model = build("InternImage", **LARGEST, level2_post_norm_block_ids=[1])
    keys = shapes(model)
    block = "levels.2.blocks.1"
    assert keys[f"{block}.dcn.dw_conv.0.weight"] == (64, 1, 5, 5)
    assert keys[f"{block}.dcn.center_feature_scale_proj_weight"] == (4, 64)
    assert keys[f"{block}.res_post_norm1.0.weight"] == keys["levels.2.post_norms.0.0.weight"] == (64,)
    assert f"{block}.gamma1" not in keys and "levels.1.post_norms.0.0.weight" not in keys
    assert [y.shape[1] for y in model(torch.randn(1, 3, 64, 32))] == [16, 32, 64, 128]


@both
@pytest.mark.parametrize("out_indices", [(0,), (0, 2), (1, 3)])
def test_levels_up_to_the_last_of_out_indices(kind, out_indices):
    """Others are not built, and their values in a state dict of all levels are left out and counted."""
    options = dict(drop_path_rate=0.4)
    complete = randomise(build(kind, **options), 0.1)
    assert hasattr(build(kind, out_indices=(0,), num_classes=3).levels[3], "blocks"), (
        "a head reads the last map"
    )
    model, count = build(kind, out_indices=out_indices, **options), max(out_indices) + 1
    assert len(model.levels) == count and model.levels[-1].downsample is None
    extra = shapes(complete).keys() - shapes(model).keys()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nn.ModuleDict({"backbone": model}).load_state_dict(
            {f"backbone.{name}": value for name, value in complete.state_dict().items()}
        )
    assert [str(len(extra)) in str(warning.message) for warning in caught] == [True] * bool(extra)
    x, maps = torch.randn(1, 3, 64, 32), complete.eval()
    outputs = model.eval()(x)
    torch.testing.assert_close(outputs, tuple(maps(x)[i] for i in out_indices))
    sum(y.sum() for y in outputs).backward()
    assert all(p.grad is not None for p in model.parameters())
    rates = [block.drop_path for level in model.levels for block in level.blocks]
    expected = [block.drop_path for level in complete.levels[:count] for block in level.blocks]
    assert [getattr(r, "drop_prob", 0) for r in rates] == [getattr(r, "drop_prob", 0) for r in expected]


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("center_feature_scale", [False, True])
def test_norms_of_levels(post_norm, center_feature_scale):
    """As in the official network: a level of post-norm blocks has no norm, unless they blend centres."""
    model = build("InternImage", post_norm=post_norm, center_feature_scale=center_feature_scale)
    has_norm = [f"levels.{i}.norm.0.weight" in shapes(model) for i in range(4)]
    assert has_norm == [center_feature_scale or not post_norm] * 4


@both
def test_forward_backward_and_autocast(kind):
    model = randomise(build(kind, out_indices=(0, 2, 3), drop_path_rate=0.0, frozen_stages=1), 0.1).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(("patch", "levels.0"))}
    assert not model.levels[0].training and model.levels[1].training
    x = torch.randn(2, 3, 64, 96)
    outputs = model(x)
    assert [tuple(y.shape) for y in outputs] == [(2, 16, 16, 24), (2, 64, 4, 6), (2, 128, 2, 3)]
    assert all(y.is_contiguous() for y in outputs)
    with torch.autocast("cpu", torch.bfloat16):
        halves = model(x)
    for expected, given in zip(outputs, halves, strict=True):
        assert (given - expected).abs().max() < 0.05 * expected.abs().max()
    sum(y.float().sin().sum() for y in (*outputs, *halves)).backward()
    # a level's final norm also feeds the next level
    assert all(p.grad.isfinite().all() for name, p in model.named_parameters() if name not in frozen)
    for shape in ((3, 64, 64), (1, 4, 64, 64)):
        with pytest.raises(RuntimeError, match=rf"^{kind}: x: .*{re.escape(str(shape))}$"):
            model(torch.randn(shape))


@both
@pytest.mark.parametrize("post_norm", [False, True])
def test_a_block_is_its_equation(kind, post_norm):
    model = build(kind, post_norm=post_norm, layer_scale=0.5)
    block, x = randomise(model, 0.1).eval().levels[1].blocks[1], torch.randn(2, 6, 5, 32)
    y = x
    for branch, norm, gamma in (
        (block.dcn, block.norm1, block.gamma1),
        (block.mlp, block.norm2, block.gamma2),
    ):
        y = y + gamma * (norm(branch(y)) if post_norm else branch(norm(y)))
    torch.testing.assert_close(block(x), y)


@both
def test_checkpointing_changes_nothing(kind):
    plain = build(kind, drop_path_rate=0.5)
    recomputing = build(kind, drop_path_rate=0.5, with_cp=True)
    recomputing.load_state_dict(plain.state_dict())
    x, gradients = torch.randn(2, 3, 32, 64), []
    for model, times in ((plain, 1), (recomputing, 2)):
        calls = []
        model.levels[0].blocks[0].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)  # for the dropped paths
        sum(y.sin().sum() for y in model(x)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        assert len(calls) == times
    torch.testing.assert_close(*gradients)


def test_drop_path_keeps_the_mean():
    output = DropPath(0.2).train()(torch.ones(1000, 2, 3))
    assert output.unique().tolist() == [0, 1.25] and (output == output[:, :1, :1]).all()
    assert abs(output.mean() - 1) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_path_of_rate_zero_changes_nothing(dtype):
    x = torch.ones(100_000, 1, dtype=dtype)
    assert torch.equal(DropPath(0.0).train()(x), x)
    assert DropPath(0.01).train()(x).unique().tolist() == pytest.approx([0, 1 / 0.99], abs=0.01)


def test_drop_path_grows_with_depth():
    model = build("InternImage", drop_path_rate=0.5)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for level in model.levels for block in level.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    model = build("InternImage", drop_path_rate=0.5, drop_path_type="uniform")
    assert all(block.drop_path.drop_prob == 0.5 for level in model.levels for block in level.blocks)


@both
def test_offsets_start_at_zero_in_a_detector(kind):
    """Offsets stay zero when the ``init_weights()`` of a parent initialises every Linear by name."""

    parent = BaseModule(init_cfg=dict(type="Normal", layer="Linear", std=1.0))
    parent.backbone = build(kind)
    parent.init_weights()
    dcn = parent.backbone.levels[2].blocks[0].dcn
    predictors = [dcn.offset, dcn.mask] if kind == "InternImage" else [dcn.offset_mask]
    assert not any(p.any() for m in predictors for p in m.parameters())
    assert dcn.output_proj.weight.std() > 0.5  # the parent did initialise it


@pytest.mark.parametrize(
    ("kind", "key"),
    [(KINDS[0], "model"), (KINDS[1], "state_dict"), (KINDS[0], "model_ema"), (KINDS[1], None)],
)
def test_pretrained_weights_of_a_classifier(kind, key, tmp_path):
    trained, path = randomise(build(kind), 1.0), tmp_path / "classifier.pth"
    state = {**trained.state_dict(), "head.weight": torch.zeros(10, 128)}
    if key == "state_dict":
        state = {f"backbone.{name}": value for name, value in state.items()}
    torch.save({key: state} if key else state, path)
    model = build(kind, init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    model.init_weights()
    torch.testing.assert_close(model.state_dict(), trained.state_dict())
    torch.save({"model": nn.Linear(2, 2).state_dict()}, path)
    with pytest.raises(RuntimeError, match="found none of 1"):
        model.init_weights()


@pytest.mark.parametrize(
    "options",
    [
        {"groups": (1, 2)},
        {"out_indices": (0, 4)},
        {"frozen_stages": 5},
        {"drop_path_type": "cosine"},
        {"core_op": "DCNv2"},
        {"groups": (3, 2, 4, 8)},
        {"drop_path_rate": 1.0},
        {"level2_post_norm_block_ids": [1, 2], "level2_post_norm": True},
        {"level2_post_norm_block_ids": [1]},
        {"res_post_norm": True},
    ],
)
def test_refuses(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options)).rstrip('s')}s?: expected"):
        build("InternImage", **options)


# The layer-wise learning rate


@pytest.mark.parametrize("dino_head", [False, True])
@pytest.mark.parametrize("backbone_small_lr", [False, True])
def test_layer_decay_is_the_official_of_every_parameter(backbone_small_lr, dino_head):
    """In InternImage-H's backbone, ``post_norms.K`` has the rate of block K of its level."""
    depths, rate = (2, 1, 3, 1), 0.7
    model = nn.ModuleDict(
        {
            "backbone": build(
                "InternImage", frozen_stages=0, depths=depths, level2_post_norm_block_ids=[0, 2], **LARGEST
            ),
            **{name: nn.Linear(4, 4) for name in ("sampling_offsets", "reference_points", "head")},
        }
    )
    model.register_parameter("level_embed", nn.Parameter(torch.zeros(4, 8)))  # of a DETR

    def wrapper(**paramwise):
        cfg = dict(
            optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
            constructor="CustomLayerDecayOptimizerConstructor",
            paramwise_cfg={"depths": depths, **paramwise},
        )
        return build_optim_wrapper(model, ConfigDict(cfg))

    switches = dict(backbone_small_lr=backbone_small_lr, dino_head=dino_head, offset_lr_scale=0.01)
    optimizer = wrapper(num_layers=7, layer_decay_rate=rate, **switches).optimizer
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}

    first_block = [1, 3, 4, 7]  # numbers of the first blocks of the four levels; 8: all other parameters
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if name.startswith("backbone.patch_embed"):  # frozen
            assert id(parameter) not in found
            continue
        if name == "level_embed":
            number = 0
        elif not name.startswith("backbone.levels"):
            number = 8
        elif parts[3] == "downsample" or parts[3] == "norm":
            number = first_block[min(int(parts[2]) + 1, 3)]
        else:  # blocks.K and post_norms.K
            number = first_block[int(parts[2])] + int(parts[4])
        lr = 1e-3 * rate ** (8 - number)
        if number < 8 and backbone_small_lr:
            lr /= 10
        if parts[0] in ("sampling_offsets", "reference_points"):
            lr *= 0.1 if dino_head else 0.01
        decays = parameter.dim() > 1 and "norm" not in name and "sampling_offsets" not in name
        assert found[id(parameter)] == pytest.approx((lr, 0.05 if decays else 0.0)), name

    for paramwise, message in (
        ({}, "layer_decay_rate"),
        (dict(layer_decay_rate=1.0, decay=1), "expected .*, got decay, "),
    ):
        with pytest.raises(ValueError, match=message):
            wrapper(**paramwise)
