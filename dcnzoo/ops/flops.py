"""FLOPs formulas of the operators for torch's ``FlopCounterMode``. Importing this module registers them.

It is not part of ``dcnzoo.ops``, because torch's counter imports Triton. It is imported together with the
counter (:mod:`dcnzoo.compat.flop_counters`).
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry as flop_registry
from torch.utils.flop_counter import register_flop_formula

import dcnzoo.ops  # noqa: F401  the operators

ops = torch.ops.dcnzoo
Sizes = Sequence[int]

# FLOPs of a bilinear sample, per channel: four products and their sum. The four positions and weights are
# computed once for all channels of a group and are not counted.
PER_SAMPLE = 2 * 4


def _convolution(positions: int, weight: Sizes) -> int:
    """Of an ordinary convolution with this number of outputs per channel; of a transposed one, of inputs."""
    return 2 * positions * prod(weight)


def _samples(positions: int, channels: int, weight: Sizes, offset: Sizes | None) -> int:
    """Of one sample per position, tap and channel, with two corners per axis; none without an offset."""
    return 0 if offset is None else 2 * 2 ** (len(weight) - 2) * positions * channels * prod(weight[2:])


def _positions(sizes: Sizes) -> int:
    return sizes[0] * prod(sizes[2:])


@register_flop_formula(ops.deform_conv)
def deform_conv_flops(
    input: Sizes,  # [N, C, *size]
    weight: Sizes,  # [O, C / groups, *kernel]
    offset: Sizes | None,
    *args: object,
    out_shape: Sizes,  # [N, O, *out]
) -> int:
    positions = _positions(out_shape)
    return _convolution(positions, weight) + _samples(positions, input[1], weight, offset)


@register_flop_formula(ops._deform_conv_backward)
def deform_conv_backward_flops(
    grad_output: Sizes, input: Sizes, weight: Sizes, offset: Sizes | None, *args, out_shape: object
) -> int:
    """A product and the samples for the weight; a product for the others, and the samples for each."""
    of_input, of_weight, *of_fields, _ = args[-1]
    others = of_input or any(of_fields)
    positions = _positions(grad_output)
    samples = _samples(positions, input[1], weight, offset)
    # as torch's formula for the gradient of a weight, which does not divide by the number of groups
    dense = _convolution(positions, [grad_output[1], input[1], *weight[2:]])
    products = others * _convolution(positions, weight) + of_weight * dense
    return products + (of_input + of_weight + any(of_fields)) * samples


@register_flop_formula(ops.deform_conv_transpose)
def deform_conv_transpose_flops(
    input: Sizes,  # [N, C, *size]
    weight: Sizes,  # [C, O / groups, *kernel]
    offset: Sizes | None,
    *args: object,
    out_shape: Sizes,  # [N, O, *out]
) -> int:
    positions = _positions(input)
    return _convolution(positions, weight) + _samples(positions, out_shape[1], weight, offset)


def _attention(output: Sizes, arguments: Sequence) -> int:
    kernel_size, *_, remove_center = arguments[-8:]  # the arguments after the tensors
    return (PER_SAMPLE + 2) * prod(output) * (prod(kernel_size) - bool(remove_center))


@register_flop_formula([ops.dcnv3, ops.dcnv4])
def deform_attn_flops(*args, out_shape: Sizes) -> int:
    """FLOPs of the samples and of their product with the mask: ten per channel and tap."""
    return _attention(out_shape, args)


@register_flop_formula([ops._dcnv3_backward, ops._dcnv4_backward])
def deform_attn_backward_flops(grad_output: Sizes, *args, out_shape: object) -> int:
    """For the input and for the fields, as many as forward."""
    return (args[-1][0] + any(args[-1][1:])) * _attention(grad_output, args[:-1])


@register_flop_formula(ops.ms_deform_attn)
def ms_deform_attn_flops(value: Sizes, *args, out_shape: object) -> int:
    """Of value ``[N, S, heads, D]`` and attention_weights ``[N, Q, heads, L, P]``."""
    return (PER_SAMPLE + 2) * prod(args[3]) * value[3]


@register_flop_formula(ops._ms_deform_attn_backward)
def ms_deform_attn_backward_flops(grad_output: Sizes, value: Sizes, *args, out_shape: object) -> int:
    return (args[-1][0] + any(args[-1][1:])) * (PER_SAMPLE + 2) * prod(args[3]) * value[3]


def _pooling(output: Sizes, sampling_ratio: int) -> int:
    """With a sampling_ratio of 0, the number of samples depends on the boxes: at least one per bin."""
    return PER_SAMPLE * prod(output) * max(sampling_ratio, 1) ** 2


@register_flop_formula(ops.deform_roi_pool)
def deform_roi_pool_flops(*args, out_shape: Sizes) -> int:
    return _pooling(out_shape, args[-2])


@register_flop_formula(ops._deform_roi_pool_backward)
def deform_roi_pool_backward_flops(grad_output: Sizes, *args, out_shape: object) -> int:
    return sum(args[-1]) * _pooling(grad_output, args[-3])


@register_flop_formula([ops.roi_align, ops.roi_align_rotated])
def roi_align_flops(*args, out_shape: Any) -> int:
    return _pooling(out_shape[0] if len(out_shape) == 3 else out_shape, args[5])  # with positions of maxima


@register_flop_formula([ops._roi_align_backward, ops._roi_align_rotated_backward])
def roi_align_backward_flops(grad_output: Sizes, *args, out_shape: object) -> int:
    return _pooling(grad_output, args[5] if len(args) == 8 else args[3])  # with positions of maxima


@register_flop_formula([ops.nms, ops.nms_rotated, ops.box_iou_rotated])
def no_flops(*args: object, **kwargs: object) -> int:
    """torch's counter counts products and sums of values, not comparisons and geometry."""
    return 0
