"""Deformable layers in FLOP counters, from the moment when the user imports one: torch's, fvcore's, thop's.

Without this, a counter ignores the operator, and a converted network counts less than the plain one.
"""

import functools
from types import ModuleType
from typing import Any

from dcnzoo.compat.after_import import call

# the modules with a table of operators, in fvcore and in its copy in mmengine
_TABLES = {
    "fvcore.nn.flop_count": "_DEFAULT_SUPPORTED_OPS",
    "mmengine.analysis.complexity_analysis": "_DEFAULT_SUPPORTED_FLOP_OPS",
}
_FORWARD = ("deform_conv", "deform_conv_transpose", "dcnv3", "dcnv4", "ms_deform_attn", "deform_roi_pool")


def install() -> None:
    """Add the counts to each counter when it is imported."""
    call("torch.utils.flop_counter", _formulas)
    for name in _TABLES:
        call(name, _add_operators)
    call("thop.profile", _add_layers)


def _formulas(module: ModuleType | None = None) -> Any:
    from dcnzoo.ops import flops

    return flops


def _add_operators(module: ModuleType) -> None:
    """Add functions of the values of a traced graph to a table. It counts a multiply-add as one FLOP."""
    table = getattr(module, _TABLES[module.__name__])
    table.update({f"dcnzoo::{name}": functools.partial(_count_traced, name) for name in _FORWARD})


def _count_traced(name: str, inputs: list[Any], outputs: list[Any]) -> int:
    formula = _formulas().flop_registry[getattr(_formulas().ops, name)]
    return formula(*map(_shape_or_constant, inputs), out_val=_shape_or_constant(outputs[0])) // 2


def _shape_or_constant(value: Any) -> Any:
    sizes = value.type().sizes() if value.type().kind() == "TensorType" else None
    return value.toIValue() if sizes is None else sizes


def _add_layers(module: ModuleType) -> None:
    """Add the layers to thop's table. It counts multiply-adds."""
    from dcnzoo import layers
    from dcnzoo.layers.deform_conv import _Deformable
    from dcnzoo.layers.offsets import OFFSET_CONVS

    def count(layer: Any, arguments: tuple, output: Any) -> None:
        flops = _formulas()
        is_deformable = getattr(layer, "offset_channels", len(arguments) > 1)
        shapes = (output.shape, arguments[0].shape)
        positions, sampled = reversed(shapes) if layer.transposed else shapes
        layer.total_ops += flops.of_convolution(positions, sampled, layer.weight.shape, is_deformable) // 2
        # the first thop, which counts in buffers, leaves out the children of a layer that it has a rule for
        if "total_ops" in layer._buffers and getattr(layer, "conv_offset", None) is not None:
            layer.total_ops += layer.conv_offset.total_ops

    for kind in vars(layers).values():
        if isinstance(kind, type) and issubclass(kind, _Deformable):
            module.register_hooks[kind] = count
    for kind in OFFSET_CONVS.values():
        module.register_hooks[kind] = module.count_convNd
