"""FLOPs of each operator, as functions of a call and of the sizes of its result.

A call has sizes in place of tensors. As in torch's ``FlopCounterMode``, a product and a sum are two FLOPs.
"""

import sys
from collections.abc import Sequence
from functools import cache, partial
from math import prod
from typing import Any

from .operator import OPERATORS

Sizes = Sequence[int]


def register() -> None:
    """Make the FLOP counters that are imported count dcnzoo's operators.

    These are torch's ``FlopCounterMode`` and, of other packages, fvcore, its copy in mmengine, and thop. Call
    it again after a later import. ``to_deformable`` calls it; ``dcnzoo.load`` and ``train`` register the
    operators with torch's counter only. A counter ignores an operator that it does not know, so that a
    converted network would count less than the plain one.
    """
    register_with_torch()
    forwards = [name for name, operator in OPERATORS.items() if not operator.is_backward]
    counts = {f"dcnzoo::{name}": partial(_count_traced, name) for name in forwards}
    for module, table in _TABLES.items():
        if module in sys.modules:
            getattr(sys.modules[module], table).update(counts)
    thop: Any = sys.modules.get("thop.profile")
    layers: Any = sys.modules.get("dcnzoo.layers")
    if thop is not None and layers is not None:
        predictors = [layers.OffsetConv1d, layers.OffsetConv2d, layers.OffsetConv3d]
        thop.register_hooks |= dict.fromkeys(predictors, thop.count_convNd)
        kinds = [kind for name, kind in vars(layers).items() if "DeformConv" in name]
        thop.register_hooks |= dict.fromkeys(kinds, _count_layer)


@cache
def register_with_torch() -> None:
    """Register the formulas with torch's counter, which takes 0.2 s to import."""
    from torch.utils.flop_counter import register_flop_formula

    for operator in OPERATORS.values():

        def count(*arguments: Any, out_shape: Any, operator: Any = operator, **keywords: Any) -> int:
            return operator.flops(operator.call(*arguments, **keywords), out_shape)

        register_flop_formula(operator.overload.overloadpacket)(count)


# module -> its table of operators in traced graphs; these modules count a product and a sum as one
_TABLES = {
    "fvcore.nn.flop_count": "_DEFAULT_SUPPORTED_OPS",
    "mmengine.analysis.complexity_analysis": "_DEFAULT_SUPPORTED_FLOP_OPS",
}


def _count_traced(name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count a call in a graph of ``torch.jit.trace``."""
    call = OPERATORS[name].call(*map(_sizes_or_constant, inputs))
    return OPERATORS[name].flops(call, _sizes_or_constant(outputs[0])) // 2


def _sizes_or_constant(value: Any) -> Any:
    sizes = value.type().sizes() if value.type().kind() == "TensorType" else None
    return value.toIValue() if sizes is None else sizes


def _count_layer(layer: Any, arguments: tuple, output: Any) -> None:
    """Add the operations of a layer, and of the layers in it, which thop does not visit, to ``total_ops``."""
    input, is_deformable = arguments[0].shape, getattr(layer, "offset_channels", len(arguments) > 1)
    at, sampled = (input, output.shape) if layer.transposed else (output.shape, input)
    parts = sum(getattr(part, "total_ops", 0) for part in [*layer.modules()][1:])
    layer.total_ops += of_convolution(at, sampled, layer.weight.shape, bool(is_deformable)) // 2 + parts


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
