"""What dcnzoo replaces in other packages can be switched off, and a compiled mmcv keeps its GPU kernels."""

import inspect
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
from dcnzoo.compat import patches
from dcnzoo.openmmlab import patches as openmmlab

MMCVS = {
    "DCN": mmcv.ops.DeformConv2dPack,
    "DCNv2": mmcv.ops.ModulatedDeformConv2dPack,
    "MultiScaleDeformableAttention": mmcv.ops.MultiScaleDeformableAttention,
}
MMDETS = {"ResNet": backbones.ResNet, "HRNet": backbones.HRNet, "FPN": necks.FPN}


# Instance checks


@pytest.mark.parametrize("name", ["DCN", "DCNv2"])
def test_layers_are_mmcvs_packs(name):
    layer = MODELS.build(dict(type=name, in_channels=4, out_channels=6, kernel_size=(3, 2)))
    assert isinstance(layer, MMCVS[name]) and isinstance(layer, getattr(dcnzoo.models, name))
    theirs = MMCVS[name](4, 6, (3, 2))
    assert {k: v.shape for k, v in layer.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    layer.load_state_dict(theirs.state_dict())


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


def test_every_replacement_has_a_name():
    assert set(patches._registered) <= set(patches.LAYERS)
    functions = inspect.getmembers(openmmlab, inspect.isfunction)
    fixes = {n for n, f in functions if f.__module__.startswith("dcnzoo.compat") and not n.startswith("_")}
    assert fixes - {"apply"} == set(patches.FIXES)
    assert patches._applied <= set(patches.FIXES)


def test_an_applied_fix_cannot_be_taken_back():
    with pytest.raises(RuntimeError, match=r"ssd_predicts.*DCNZOO_PATCHES=-ssd_predicts"):
        patches.disable("ssd_predicts")
    assert patches.enabled("ssd_predicts")


@pytest.mark.parametrize(
    ("value", "on", "off"),
    [
        ("", ["deform_conv", "DCN", "ssd_predicts"], ["cuda"]),
        ("off", [], ["deform_conv", "DCN", "ssd_predicts", "cuda"]),
        ("-deform_conv, -DCN", ["DCNv2", "ssd_predicts"], ["deform_conv", "DCN", "cuda"]),
        ("deform_conv,DCN", ["deform_conv", "DCN"], ["DCNv2", "ssd_predicts", "cuda"]),
        ("cuda", ["deform_conv", "DCN", "cuda"], []),
        ("cuda,-DCN", ["deform_conv", "cuda"], ["DCN"]),
        ("deform_conv,cuda", ["deform_conv", "cuda"], ["DCN"]),
    ],
)
def test_the_variables_values(value, on, off):
    chosen = patches._chosen(value)
    assert set(on) <= chosen and not chosen & set(off)


@pytest.mark.parametrize("value", ["deform_con", "-resnet", "off,DCN", "none"])
def test_names_that_do_not_exist(value):
    with pytest.raises(RuntimeError, match=rf"DCNZOO_PATCHES: expected .*{value.split(',')[0].lstrip('-')}"):
        patches._chosen(value)
    with pytest.raises(RuntimeError, match=r"disable: .*'deform_con'"):
        patches.disable("deform_con")


def test_the_variable():
    """In a process of its own: mmcv's and mmdet's classes stay, and nothing of mmengine is changed."""
    text = """
import mmcv.ops, mmengine.optim, torch
before = torch.nn.SyncBatchNorm.forward, mmengine.optim.DefaultOptimWrapperConstructor.add_params
import dcnzoo.models
from dcnzoo.compat import patches
from mmdet.models.backbones import resnet
from mmdet.registry import MODELS
assert MODELS.get('ResNet') is resnet.ResNet and MODELS.get('DCN') is mmcv.ops.DeformConv2dPack
assert not patches.active()
assert before == (torch.nn.SyncBatchNorm.forward, mmengine.optim.DefaultOptimWrapperConstructor.add_params)
"""
    run = [sys.executable, "-c", f"import dcnzoo\n{text}"]
    subprocess.run(run, env={**os.environ, "DCNZOO_PATCHES": "off"}, check=True)


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
    ours = SimpleNamespace(forward=lambda tensor, scale: ("dcnzoo", scale))
    theirs = SimpleNamespace(forward=lambda tensor, scale: ("mmcv", scale))
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
    torch.manual_seed(0)
    layer = MODELS.build(
        dict(
            type=name, in_channels=4, out_channels=6, kernel_size=(3, 2), padding=1, bias=bias, im2col_step=2
        )
    )
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 4, 7, 9).to(memory_format=torch.channels_last)
    expected = layer(x)
    calls = called(monkeypatch, sys.modules["dcnzoo.openmmlab.models.dcn"], function)
    with patches.disabled(operator):
        got = layer(x)
    assert calls == [function]
    torch.testing.assert_close(got, expected)


def test_attention_calls_mmcv_where_its_kernels_stay(compiled, monkeypatch):
    torch.manual_seed(0)
    layer = dcnzoo.models.MultiScaleDeformableAttention(12, num_heads=3, num_levels=1, dropout=0.0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    module = sys.modules["mmcv.ops.multi_scale_deform_attn"]
    given = dict(
        query=torch.randn(5, 2, 12),
        value=torch.randn(12, 2, 12),
        reference_points=torch.rand(2, 5, 1, 2),
        spatial_shapes=torch.tensor([[3, 4]]),
        level_start_index=torch.tensor([0]),
    )
    expected = layer(**given)
    calls = called(monkeypatch, module, "multi_scale_deformable_attn_pytorch")
    with patches.disabled("multi_scale_deform_attn"):
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
    layer = MODELS.build(dict(type=name, in_channels=4, out_channels=6, kernel_size=3))
    x = torch.randn(2, 4, 7, 9)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
