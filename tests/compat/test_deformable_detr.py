"""The compiled modules of Deformable DETR and its copies, called as in the projects."""

import importlib

import pytest
import torch

from dcnzoo.compat import patches

from .programs import SHAPES, STARTS, attention, attention_leaves, compare


@pytest.mark.parametrize(
    ("name", "levels", "dtype"),
    [
        ("MultiScaleDeformableAttention", (SHAPES, STARTS), torch.float64),
        ("MultiScaleDeformableAttention", (SHAPES,), torch.float64),  # TrackFormer computes the starts itself
        ("adet._C", (SHAPES, STARTS), torch.float16),
    ],
)
def test_ms_deform_attn(provide, package, name, levels, dtype):
    if "." in name:
        package(f"{name.partition('.')[0]}.config")
    provide(name)
    compiled = importlib.import_module(name)
    compare(  # 2, the im2col_step, does not divide the batch of 3
        lambda v, at, w: compiled.ms_deform_attn_forward(v, *levels, at, w, 2),
        attention,
        *attention_leaves(),
        dtype=dtype,
        backward=lambda g, v, at, w: compiled.ms_deform_attn_backward(v, *levels, at, w, g, 2),
    )


def test_grounding_dino_on_the_cpu(provide, package):
    """GroundingDINO's layer calls the compiled module only for CUDA tensors, on the CPU its own function."""
    module = "groundingdino.models.GroundingDINO.ms_deform_attn"
    package(
        module,
        "from groundingdino import _C\n"
        "def multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, weights):\n"
        "    raise NotImplementedError\n",
    )
    provide("groundingdino._C")
    project = importlib.import_module(module)
    compare(
        lambda v, at, w: project.multi_scale_deformable_attn_pytorch(v, SHAPES, at, w),
        attention,
        *attention_leaves(),
    )
    assert "groundingdino._C" in patches.active()
    with patches.disabled("groundingdino._C"), pytest.raises(NotImplementedError):
        project.multi_scale_deformable_attn_pytorch(*[None] * 4)


def test_one_former(provide, package):
    """On a CPU, it does not import the compiled module. LW-DETR's function has other shapes and remains."""
    package("oneformer.ops.functions", "def ms_deform_attn_core_pytorch(*tensors):\n    return 'its own'\n")
    package("oneformer.ops.layer", "from .functions import ms_deform_attn_core_pytorch\n")
    provide("ms_deform_attn_core_pytorch")
    layer = importlib.import_module("oneformer.ops.layer")
    leaves = attention_leaves()
    compare(lambda v, at, w: layer.ms_deform_attn_core_pytorch(v, SHAPES, at, w), attention, *leaves)
    value, locations, weights = leaves
    others = (value.permute(0, 2, 3, 1), SHAPES, locations, weights.flatten(3))
    assert layer.ms_deform_attn_core_pytorch(*others) == "its own"


# BEVFormer and UniAD: function classes on mmcv 1.x's compiled module, and a layer that calls them on a GPU

FUNCTIONS = """
class MultiScaleDeformableAttnFunction_fp32:
    @staticmethod
    def apply(*arguments):
        raise NotImplementedError


class MultiScaleDeformableAttnFunction_fp16(MultiScaleDeformableAttnFunction_fp32):
    pass
"""
LAYER = """
from .functions import MultiScaleDeformableAttnFunction_fp16, MultiScaleDeformableAttnFunction_fp32


def multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, locations, weights):
    raise NotImplementedError
"""


def test_bevformer(provide, package):
    """The functions are found by their names, in every project that has them."""
    package("projects.bevformer.functions", FUNCTIONS)
    package("projects.bevformer.layer", LAYER)
    provide("MultiScaleDeformableAttnFunction")
    layer = importlib.import_module("projects.bevformer.layer")
    single, half = layer.MultiScaleDeformableAttnFunction_fp32, layer.MultiScaleDeformableAttnFunction_fp16
    leaves = attention_leaves()
    for function in (single, half):
        compare(lambda v, at, w, f=function: f.apply(v, SHAPES, STARTS, at, w, 64), attention, *leaves)
    compare(lambda v, at, w: layer.multi_scale_deformable_attn_pytorch(v, SHAPES, at, w), attention, *leaves)
    with torch.autocast("cpu", torch.bfloat16):
        assert single.apply(leaves[0], SHAPES, STARTS, *leaves[1:], 64).dtype == torch.float32
        assert half.apply(leaves[0], SHAPES, STARTS, *leaves[1:], 64).dtype == torch.float16
    with patches.disabled("MultiScaleDeformableAttnFunction"), pytest.raises(NotImplementedError):
        layer.MultiScaleDeformableAttnFunction_fp32.apply()
