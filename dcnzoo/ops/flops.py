"""What torch's ``FlopCounterMode`` counts for dcnzoo's operators; importing the module registers it."""

from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

import dcnzoo.ops  # noqa: F401  the operators

# Of a bilinear sample: four products and their sum, for every channel. What finds the four places and
# weights is shared by the channels of a group, and not counted.
_PER_SAMPLE = 2 * 4


@register_flop_formula(torch.ops.dcnzoo.deform_conv)
def deform_conv_flops(
    input: list[int],  # [N, C, *size]
    weight: list[int],  # [O, C / groups, *kernel]
    offset: list[int] | None,
    *args: object,
    out_shape: list[int],  # [N, O, *out]
    **kwargs: object,
) -> int:
    """The convolution's, as of an ordinary one, and the samples' where there are offsets."""
    positions = out_shape[0] * prod(out_shape[2:])
    convolution = 2 * positions * prod(weight)
    samples = positions * input[1] * prod(weight[2:]) if offset is not None else 0
    return convolution + _PER_SAMPLE * samples


def _aggregation_flops(out_shape: list[int], kernel_size: list[int], remove_center: bool) -> int:
    """The samples, and their product with the mask: ten operations for each channel and tap."""
    return (_PER_SAMPLE + 2) * prod(out_shape) * (prod(kernel_size) - remove_center)


@register_flop_formula(torch.ops.dcnzoo.dcnv3)
def dcnv3_flops(
    input: list[int],  # [N, H, W, C]
    offset: list[int],
    mask: list[int],
    kernel_size: list[int],
    *args: object,
    out_shape: list[int],  # [N, oH, oW, C]
    **kwargs: object,
) -> int:
    return _aggregation_flops(out_shape, kernel_size, bool(args[-1]))


@register_flop_formula(torch.ops.dcnzoo.dcnv4)
def dcnv4_flops(
    input: list[int],  # [N, H, W, C]
    offset_mask: list[int],
    kernel_size: list[int],
    *args: object,
    out_shape: list[int],  # [N, oH, oW, C]
    **kwargs: object,
) -> int:
    return _aggregation_flops(out_shape, kernel_size, bool(args[-1]))


@register_flop_formula(torch.ops.dcnzoo.ms_deform_attn)
def ms_deform_attn_flops(
    value: list[int],  # [N, S, heads, D]
    spatial_shapes: list[int],
    level_start_index: list[int],
    sampling_locations: list[int],
    attention_weights: list[int],  # [N, Q, heads, L, P]
    *args: object,
    **kwargs: object,
) -> int:
    return (_PER_SAMPLE + 2) * prod(attention_weights) * value[3]
