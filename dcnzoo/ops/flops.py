"""FLOPs formulas for torch's ``FlopCounterMode``. Importing this module registers them.

It is not part of ``dcnzoo.ops``, because torch's counter imports Triton.
"""

from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

import dcnzoo.ops  # noqa: F401  the operators

# FLOPs of a bilinear sample, per channel: four products and their sum. The four positions and weights are
# computed once for all channels of a group and are not counted.
PER_SAMPLE = 2 * 4


@register_flop_formula(torch.ops.dcnzoo.deform_conv)
def deform_conv_flops(
    input: list[int],  # [N, C, *size]
    weight: list[int],  # [O, C / groups, *kernel]
    offset: list[int] | None,
    *args: object,
    out_shape: list[int],  # [N, O, *out]
    **kwargs: object,
) -> int:
    """FLOPs of an ordinary convolution, plus those of the samples if ``offset`` is a tensor."""
    positions = out_shape[0] * prod(out_shape[2:])
    convolution = 2 * positions * prod(weight)
    samples = positions * input[1] * prod(weight[2:]) if offset is not None else 0
    return convolution + PER_SAMPLE * samples


@register_flop_formula([torch.ops.dcnzoo.dcnv3, torch.ops.dcnzoo.dcnv4])
def deform_attn_flops(*args, out_shape: list[int], **kwargs: object) -> int:
    """FLOPs of the samples and of their product with the mask: ten per channel and tap."""
    kernel_size, *_, remove_center = args[-8:]  # the arguments after the tensors
    return (PER_SAMPLE + 2) * prod(out_shape) * (prod(kernel_size) - bool(remove_center))


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
    return (PER_SAMPLE + 2) * prod(attention_weights) * value[3]
