"""Replacements for functions of other projects that do not call their compiled module on the CPU."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.mmcv._ext import attention_in_place_of
from dcnzoo.compat.mmcv.deform_conv import deform_conv2d, modulated_deform_conv2d
from dcnzoo.compat.signatures import takes

# mmcv's early order, without a bias; the projects call the function by position
_v1 = takes("input offset weight stride padding dilation groups deform_groups im2col_step")(deform_conv2d)


def _attention_function(dtype: torch.dtype) -> type:
    """A function class of BEVFormer, of which projects call only ``apply``; ``dtype`` is that of autocast."""

    class MultiScaleDeformableAttnFunction:
        @staticmethod
        def apply(value, shapes, starts, locations, weights, im2col_step) -> Tensor:
            device = value.device.type
            if torch.is_autocast_enabled(device):
                value, locations, weights = (tensor.to(dtype) for tensor in (value, locations, weights))
            with torch.autocast(device, enabled=False):
                return dcnzoo.ops.ms_deform_attn(value, shapes, starts, locations, weights)

    return MultiScaleDeformableAttnFunction


def _core_attention(plain: Callable) -> Callable:
    """Deformable DETR's function for tests. LW-DETR's, with other shapes, remains."""
    attention = attention_in_place_of(plain)

    @functools.wraps(plain)
    def core(value: Tensor, value_spatial_shapes, sampling_locations, attention_weights: Tensor) -> Tensor:
        function = attention if attention_weights.dim() == 5 else plain
        return function(value, value_spatial_shapes, sampling_locations, attention_weights)

    return core


# name of a project's function → function that returns the replacement
REPLACEMENTS: dict[str, Callable[[Any], object]] = {
    "deform_conv": lambda original: _v1,
    "modulated_deform_conv": lambda original: modulated_deform_conv2d,
    "multi_scale_deformable_attn_pytorch": attention_in_place_of,
    "ms_deform_attn_core_pytorch": _core_attention,
    "MultiScaleDeformableAttnFunction_fp32": lambda original: _attention_function(torch.float32),
    "MultiScaleDeformableAttnFunction_fp16": lambda original: _attention_function(torch.float16),
    # pycocotools' class: the project's calls functions of detectron2._C that dcnzoo lacks
    "COCOeval_opt": lambda original: original.__base__,
}
