"""FLOPs of each operator, as functions of a call and of the sizes of its result.

A call has sizes in place of tensors. As in torch's ``FlopCounterMode``, a product and a sum are two FLOPs.
"""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

from .operator import OPERATORS

Sizes = Sequence[int]


@cache
def register() -> None:
    """Make torch's ``FlopCounterMode`` count dcnzoo's operators; otherwise it counts them as 0.

    ``import dcnzoo`` does not call it, because the import of torch's counter takes 0.2 s.
    """
    from torch.utils.flop_counter import register_flop_formula

    for operator in OPERATORS.values():

        def count(*arguments: Any, out_shape: Any, operator: Any = operator, **keywords: Any) -> int:
            return operator.flops(operator.Call(*arguments, **keywords), out_shape)

        register_flop_formula(operator.overload.overloadpacket)(count)


# FLOPs of a bilinear sample, per channel: four products and their sum. The four positions and weights are
# computed once for all channels of a group and are not counted.
PER_SAMPLE = 2 * 4


def _convolution(positions: int, weight: Sizes) -> int:
    """Return FLOPs of a convolution with ``positions`` outputs per channel (transposed: inputs)."""
    return 2 * positions * prod(weight)


def _samples(positions: int, channels: int, weight: Sizes) -> int:
    """Return the FLOPs of one sample per position, tap and channel, with two corners per axis."""
    return 2 * 2 ** (len(weight) - 2) * positions * channels * prod(weight[2:])


def _positions(sizes: Sizes) -> int:
    return sizes[0] * prod(sizes[2:])


def of_convolution(at: Sizes, sampled: Sizes, weight: Sizes, is_deformable: bool) -> int:
    """Return the FLOPs of the products at the pixels of map ``at``, and of the samples of ``sampled``."""
    positions = _positions(at)
    return _convolution(positions, weight) + is_deformable * _samples(positions, sampled[1], weight)


def deform_conv(call: Any, output: Sizes) -> int:
    return of_convolution(output, call.input, call.weight, call.offset is not None)


def deform_conv_backward(call: Any, _: object) -> int:
    """Count a product for the weight, one for all others, and samples for input, weight and fields."""
    of_input, of_weight, *of_fields, _ = call.output_mask
    others = of_input or any(of_fields)
    positions, channels = _positions(call.grad_output), call.input[1]
    samples = 0 if call.offset is None else _samples(positions, channels, call.weight)
    # as torch's formula for the gradient of a weight, which does not divide by the number of groups
    dense = _convolution(positions, [call.grad_output[1], channels, *call.weight[2:]])
    products = others * _convolution(positions, call.weight) + of_weight * dense
    return products + (of_input + of_weight + any(of_fields)) * samples


def deform_conv_transpose(call: Any, output: Sizes) -> int:
    return of_convolution(call.input, output, call.weight, call.offset is not None)


def deform_attn(call: Any, output: Sizes) -> int:
    """Return the FLOPs of the samples and of their product with the mask: ten per channel and tap."""
    return (PER_SAMPLE + 2) * prod(output) * (prod(call.kernel_size) - bool(call.remove_center))


def ms_deform_attn(call: Any, _: object) -> int:
    """Return FLOPs for value ``[N, S, heads, D]`` and attention_weights ``[N, Q, heads, L, P]``."""
    return (PER_SAMPLE + 2) * prod(call.attention_weights) * call.value[3]


def pooling(call: Any, output: Sizes) -> int:
    """Return FLOPs. With a sampling_ratio of 0, count one sample per bin, as the boxes are not known."""
    return PER_SAMPLE * prod(output) * max(call.sampling_ratio, 1) ** 2
