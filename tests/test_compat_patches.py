"""What dcnzoo replaces in other packages can be switched off, and a compiled mmcv keeps its GPU kernels."""

import os
import subprocess
import sys
from types import SimpleNamespace

import mmcv.ops
import pytest
import torch
from mmdet.models import backbones, necks
from mmdet.registry import MODELS as DETECTION
from mmengine.registry import MODELS
from torch import nn

import dcnzoo.compat.mmcv as compat
import dcnzoo.models
import dcnzoo.openmmlab.datasets
from dcnzoo.compat import patches

from .modules import randomise

MMCVS = {
    "DCN": mmcv.ops.DeformConv2dPack,
    "DCNv2": mmcv.ops.ModulatedDeformConv2dPack,
    "MultiScaleDeformableAttention": mmcv.ops.MultiScaleDeformableAttention,
}
MMDETS = {"ResNet": backbones.ResNet, "HRNet": backbones.HRNet, "FPN": necks.FPN}


SHAPE = dict(in_channels=4, out_channels=6, kernel_size=(3, 2), padding=1)


# Instance checks


@pytest.mark.parametrize("name", ["DCN", "DCNv2"])
def test_layers_are_mmcvs_packs(name):
    layer, theirs = MODELS.build(dict(type=name, **SHAPE)), MMCVS[name](4, 6, (3, 2), padding=1)
    assert isinstance(layer, MMCVS[name]) and isinstance(layer, getattr(dcnzoo.models, name))
    shapes = [{k: v.shape for k, v in module.state_dict().items()} for module in (layer, theirs)]
    assert shapes[0] == shapes[1]


# The switch


@pytest.mark.parametrize("name", MMCVS | MMDETS)
def test_a_layer_is_switched_off_and_on(name):
    registry, theirs = (MODELS, MMCVS[name]) if name in MMCVS else (DETECTION, MMDETS[name])
    ours = getattr(dcnzoo.models, name)
    assert registry.get(name) is ours and ours is not theirs
    with patches.disabled(name):
        assert registry.get(name) is theirs
        assert name not in patches.active()
    assert registry.get(name) is ours
    patches.disable(name)
    assert registry.get(name) is theirs
    patches.enable(name)
    assert registry.get(name) is ours


# Each patch: applied, undone, not needed

TABLE = patches.table()
each_patch = pytest.mark.parametrize("patch", TABLE, ids=lambda patch: f"{patch.name}-{patch.target}")
# What a patch changes otherwise than by Changes.set and set_item
OTHERWISE = {
    "load_own_checkpoints": lambda: set(torch.serialization.get_safe_globals()),
    "legacy_offset_names": lambda: list(nn.modules.module._global_module_registration_hooks.values()),
}


class Recorded(patches.Changes):
    """Changes that note the owner and the name of each."""

    def __init__(self):
        super().__init__()
        self.places = []

    def set(self, owner, name, value):
        self.places.append((owner, name))
        super().set(owner, name, value)

    def set_item(self, mapping, key, value):
        self.places.append((mapping, key))
        super().set_item(mapping, key, value)


def places(patch):
    with Recorded() as changes:
        patch.change(changes)
    return changes.places


def state(patch, where):
    other = OTHERWISE.get(patch.name, lambda: None)()
    mappings = ((owner if isinstance(owner, dict) else vars(owner), name) for owner, name in where)
    return [mapping.get(name, "absent") for mapping, name in mappings], other


@pytest.fixture
def undone(patch):
    """The patch, which is not applied, and is as before afterwards."""
    applied, needed = patch.applied, patch.needed
    patch.undo()
    yield patch
    patch.undo()
    patch.needed = needed
    if applied:
        patch.apply()


@each_patch
def test_a_patch_is_applied_and_undone(undone):
    undone.needed = lambda: True
    where = places(undone)
    original, _ = before = state(undone, where)
    assert where or undone.name in OTHERWISE
    for _ in range(2):
        undone.apply()
        assert undone.applied and undone.name in patches.active()
        changed, other = state(undone, where)
        assert all(new is not old for new, old in zip(changed, original, strict=True))
        assert other != before[1] or undone.name not in OTHERWISE
        undone.apply()  # again, to no effect
        assert state(undone, where) == (changed, other)
        undone.undo()
        assert not undone.applied
        assert state(undone, where) == before


@each_patch
def test_a_patch_that_is_not_needed_changes_nothing(undone):
    undone.needed = lambda: False
    where = places(undone)
    before = state(undone, where)
    undone.apply()
    assert not undone.applied and state(undone, where) == before


@each_patch
def test_a_patch_is_switched_off_and_on(patch):
    applied = patch.applied
    with patches.disabled(patch.name):
        assert not patch.applied
        patches.add(*TABLE, complete=True)
        assert not patch.applied
    assert patch.applied == applied


def test_no_two_patches_change_the_same():
    """So that they can be undone in any order."""
    found = [(id(owner), name) for patch in TABLE for owner, name in places(patch)]
    assert len(found) == len(set(found))


def test_a_patch_that_fails_halfway_is_undone():
    class Owner:
        pass

    def change(changes):
        changes.set(Owner, "name", 1)
        raise KeyError("halfway")

    patch = patches.Patch("some", "Owner.name", "for this test", "all", change)
    with pytest.raises(KeyError):
        patch.apply()
    assert not patch.applied and not hasattr(Owner, "name")


def test_changes_are_undone_in_reverse():
    class Parent:
        def method(self):
            return "parent's"

        @classmethod
        def of_class(cls):
            return cls.__name__

    class Child(Parent):
        pass

    mapping, before = {"a": 1}, dict(vars(Parent))
    with patches.Changes() as changes:
        changes.set(Child, "method", lambda self: "new")
        changes.wrap(Child, "method", lambda original, self: f"wrapped {original(self)}")
        changes.set(Parent, "of_class", classmethod(lambda cls: "new"))
        changes.set_item(mapping, "a", 2)
        changes.set_item(mapping, "b", 3)
        assert (Child().method(), Child.of_class(), mapping) == ("wrapped new", "new", {"a": 2, "b": 3})
    assert (Child().method(), Child.of_class(), mapping) == ("parent's", "Child", {"a": 1})
    assert "method" not in vars(Child) and dict(vars(Parent)) == before


def test_names_of_registered_classes():
    """Those that replace a class: names that DCNZOO_PATCHES takes before the classes are imported."""
    found = {patch.name for patch in TABLE if "in the registry" in patch.target}
    assert {"DCN", "FPN", "CocoDataset"} <= found <= set(patches.REGISTERED)


# The variable


@pytest.mark.parametrize(
    ("value", "on", "off"),
    [
        ("", ["deform_conv", "DCN", "ssd_head"], ["cuda"]),
        ("off", [], ["deform_conv", "DCN", "ssd_head", "cuda"]),
        ("-deform_conv, -DCN", ["DCNv2", "ssd_head"], ["deform_conv", "DCN", "cuda"]),
        ("deform_conv,DCN", ["deform_conv", "DCN"], ["DCNv2", "ssd_head", "cuda"]),
        ("cuda", ["deform_conv", "DCN", "cuda"], []),
        ("cuda,-DCN", ["deform_conv", "cuda"], ["DCN"]),
        ("deform_conv,cuda", ["deform_conv", "cuda"], ["DCN"]),
    ],
)
def test_the_variables_values(value, on, off):
    switches = patches._parse(value)
    assert all(switches[name] for name in on) and not any(switches[name] for name in off)


@pytest.mark.parametrize("value", ["deform_con", "-resnet", "off,DCN", "none"])
def test_names_that_do_not_exist(value, monkeypatch):
    with pytest.raises(RuntimeError, match=rf"DCNZOO_PATCHES: expected .*{value.split(',')[0].lstrip('-')}"):
        monkeypatch.setattr(patches, "_switches", patches._parse(value))
        patches.add(complete=True)


def test_disabling_what_does_not_exist(monkeypatch):
    with pytest.raises(RuntimeError, match=r"disable: .*'deform_con'.*deform_conv"):
        patches.disable("deform_con")
    assert patches.enabled("deform_conv")
    # the error is raised when the class names are known
    monkeypatch.setattr(patches, "_complete", False)
    monkeypatch.setattr(patches, "_switches", patches._switches)
    patches.disable("ssd_hed")
    with pytest.raises(RuntimeError, match=r"'ssd_hed'.*ssd_head"):
        patches.add(complete=True)


def test_the_variable():
    """In a process of its own: mmcv's and mmdet's classes stay, and nothing of mmengine is changed."""
    text = """
import dcnzoo, mmcv.ops, torch
from mmengine.model import MMDistributedDataParallel as ddp
from mmengine.optim import DefaultOptimWrapperConstructor as constructor
before = ddp.__init__, constructor.add_params
import dcnzoo.models
import dcnzoo.openmmlab.datasets
from dcnzoo.compat import patches
from mmdet.models.backbones import resnet
from mmdet.registry import MODELS
assert MODELS.get('ResNet') is resnet.ResNet and MODELS.get('DCN') is mmcv.ops.DeformConv2dPack
assert not patches.active() and before == (ddp.__init__, constructor.add_params)
"""
    subprocess.run([sys.executable, "-c", text], env={**os.environ, "DCNZOO_PATCHES": "off"}, check=True)


# Which kernels run where mmcv is compiled


@pytest.fixture
def compiled(monkeypatch):
    """As if mmcv were compiled, for the CPU and for CUDA."""
    monkeypatch.setattr(compat, "_mmcv_devices", ("cpu", "cuda"))


CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda:1"), torch.device("meta")


def test_mmcv_lite_always_runs_on_dcnzoo(monkeypatch):
    monkeypatch.setattr(compat, "_mmcv_devices", None)
    with patches.disabled(*patches.OPERATORS):
        assert all(compat.runs_on_dcnzoo("deform_conv", device) for device in (CPU, CUDA, OTHER))


@pytest.mark.parametrize("operator", patches.OPERATORS)
def test_a_compiled_mmcv_keeps_its_gpu_kernels(operator, compiled, monkeypatch):
    assert compat.runs_on_dcnzoo(operator, CPU)
    assert not compat.runs_on_dcnzoo(operator, CUDA)
    assert not compat.runs_on_dcnzoo(operator, OTHER)
    patches.enable("cuda")
    assert compat.runs_on_dcnzoo(operator, CUDA)
    assert not compat.runs_on_dcnzoo(operator, OTHER)
    patches.disable("cuda")
    monkeypatch.setattr(compat, "_mmcv_devices", ("cpu",))
    assert compat.runs_on_dcnzoo(operator, CUDA)  # mmcv has none
    with patches.disabled(operator):
        assert not compat.runs_on_dcnzoo(operator, CPU) and not compat.runs_on_dcnzoo(operator, CUDA)


def test_kernels_are_chosen_by_the_tensors_device(compiled):
    ours, theirs = (
        SimpleNamespace(forward=lambda tensor, scale, by=by: (by, scale)) for by in ("dcnzoo", "mmcv")
    )
    extension = compat._ByDevice("deform_conv", ours, theirs)
    assert extension.forward(torch.zeros(1), 2) == ("dcnzoo", 2)
    assert extension.forward(torch.zeros(1, device="meta"), scale=3) == ("mmcv", 3)
    with patches.disabled("deform_conv"):
        assert extension.forward(torch.zeros(1), 2) == ("mmcv", 2)


@pytest.mark.parametrize(
    ("batch", "most", "expected"),
    [(6, 4, 3), (7, 4, 1), (64, 32, 32), (3, None, 3), (66, None, 22), (0, 4, 1)],
)
def test_largest_step(batch, most, expected):
    assert compat.largest_step(batch, most) == expected


def called(monkeypatch, module, name):
    """Counts the calls of a function."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: calls.append(name) or function(*args))
    return calls


@pytest.mark.parametrize(
    ("name", "operator", "function"),
    [
        ("DCN", "deform_conv", "deform_conv2d"),
        ("DCNv2", "modulated_deform_conv", "modulated_deform_conv2d"),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_packs_call_mmcv_where_its_kernels_stay(name, operator, function, bias, compiled, monkeypatch):
    layer = randomise(MODELS.build(dict(type=name, **SHAPE, bias=bias, im2col_step=2)))
    x = torch.randn(3, 4, 7, 9).to(memory_format=torch.channels_last)
    expected = layer(x)
    calls = called(monkeypatch, sys.modules["dcnzoo.openmmlab.models.dcn"], function)
    with patches.disabled(operator):
        got = layer(x)
    assert calls == [function]
    torch.testing.assert_close(got, expected)


def test_attention_calls_mmcv_where_its_kernels_stay(compiled, monkeypatch):
    layer = dcnzoo.models.MultiScaleDeformableAttention(12, num_heads=3, num_levels=1, dropout=0.0)
    randomise(layer)
    given = dict(
        query=torch.randn(5, 2, 12),
        value=torch.randn(12, 2, 12),
        reference_points=torch.rand(2, 5, 1, 2),
        spatial_shapes=torch.tensor([[3, 4]]),
        level_start_index=torch.tensor([0]),
    )
    expected = layer(**given)
    module = sys.modules["mmcv.ops.multi_scale_deform_attn"]
    with patches.disabled("multi_scale_deform_attn"), monkeypatch.context() as patched:
        calls = called(patched, module, "multi_scale_deformable_attn_pytorch")
        got = layer(**given)
    assert calls
    torch.testing.assert_close(got, expected)


def test_mmcvs_attention_in_pytorch_stays_where_dcnzoo_has_no_kernels(monkeypatch):
    """A CUDA build of torch beside a dcnzoo without CUDA kernels: F.grid_sample, as without dcnzoo."""
    from dcnzoo.compat.mmcv import _ext

    assert _ext._attends_on(CPU)
    monkeypatch.setattr(_ext.dcnzoo.ops, "with_cuda", lambda: False)
    assert not _ext._attends_on(CUDA) and not _ext._attends_on(OTHER)
    monkeypatch.setattr(_ext.dcnzoo.ops, "with_cuda", lambda: True)
    assert _ext._attends_on(CUDA)


@pytest.mark.parametrize("name", ["DCN", "DCNv2"])
def test_packs_compile(name):
    layer, x = MODELS.build(dict(type=name, **SHAPE)), torch.randn(2, 4, 7, 9)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))
