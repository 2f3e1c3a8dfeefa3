"""Deformable layers in FLOP counters: torch's, fvcore's and its copy in mmengine, thop, ptflops, torchinfo.

Without this, a counter ignores the operator, and a converted network counts less than the plain one.
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
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
    call("ptflops.aten_ops", lambda module: module.ATEN_OPS_MAPPING.update(_aten_operators()))
    call("ptflops.pytorch_ops", _add_modules)
    call("torchinfo.layer_info", _count_own_part)
    call("torchinfo.model_statistics", _add_own_parts)


def _operators() -> dict[str, Any]:
    from dcnzoo.ops import is_defined

    return importlib.import_module("dcnzoo.ops.operator").OPERATORS if is_defined() else {}


def _formulas(module: Any) -> None:
    """Register the formulas with torch's counter."""
    for operator in _operators().values():

        def count(*arguments: Any, out_shape: Any, operator: Any = operator, **keywords: Any) -> int:
            return operator.flops(operator.call(*arguments, **keywords), out_shape)

        module.register_flop_formula(operator.overload.overloadpacket)(count)


def _add_operators(module: ModuleType) -> None:
    """Add functions of the values of a traced graph to a table. It counts a multiply-add as one FLOP."""
    table = getattr(module, _TABLES[module.__name__])
    table.update({f"dcnzoo::{name}": functools.partial(_count_traced, name) for name in _FORWARD})


def _count_traced(name: str, inputs: list[Any], outputs: list[Any]) -> int:
    return _operator_macs(name, map(_shape_or_constant, inputs), _shape_or_constant(outputs[0]))


def _operator_macs(name: str, arguments: Iterable, output: Any) -> int:
    operator = _operators()[name]
    return operator.flops(operator.call(*arguments), output) // 2


def _shape_or_constant(value: Any) -> Any:
    sizes = value.type().sizes() if value.type().kind() == "TensorType" else None
    return value.toIValue() if sizes is None else sizes


def _macs(layer: Any, input: Sequence[int], output: Sequence[int], is_deformable: bool = True) -> int:
    """Multiply-adds of a layer without those of the layers that predict its offsets."""
    positions, sampled = (input, output) if layer.transposed else (output, input)
    is_deformable = bool(getattr(layer, "offset_channels", is_deformable))
    from dcnzoo.ops.flops import of_convolution

    return of_convolution(positions, sampled, layer.weight.shape, is_deformable) // 2


def _layers() -> tuple[list[type], type]:
    """All deformable layers, and the base of them."""
    from dcnzoo import layers
    from dcnzoo.layers.deform_conv import _Deformable

    kinds = [kind for kind in vars(layers).values() if isinstance(kind, type)]
    return [kind for kind in kinds if issubclass(kind, _Deformable)], _Deformable


def _rules(total: str, plain: Callable) -> dict[type, Callable]:
    """Functions that add the multiply-adds of a layer to its attribute ``total``, by its class."""
    from dcnzoo.layers.offsets import OFFSET_CONVS

    def count(layer: Any, arguments: tuple, output: Any) -> None:
        macs = _macs(layer, arguments[0].shape, output.shape, len(arguments) > 1)
        if total == "__flops__" or total in layer._buffers:  # those that leave out the children
            macs += sum(getattr(part, total, 0) for part in [*layer.modules()][1:])
        setattr(layer, total, getattr(layer, total) + macs)

    return dict.fromkeys(_layers()[0], count) | dict.fromkeys(OFFSET_CONVS.values(), plain)


def _add_layers(module: Any) -> None:
    """Add the layers to thop's table."""
    module.register_hooks |= _rules("total_ops", module.count_convNd)


def _add_modules(module: Any) -> None:
    """Add the layers to the table of ptflops' first engine."""
    module.MODULES_MAPPING |= _rules("__flops__", module.conv_flops_counter_hook)


def _aten_operators() -> dict[Any, Callable]:
    """The operators for the table of ptflops' second engine, which gets the arguments and the results."""

    def count(name: str, inputs: Sequence, outputs: Sequence) -> int:
        return _operator_macs(name, [getattr(v, "shape", v) for v in inputs], outputs[0].shape)

    operators = _operators()
    return {operators[name].overload.overloadpacket: functools.partial(count, name) for name in _FORWARD}


def _count_own_part(module: Any) -> None:
    """torchinfo counts parameters times positions, of layers without children."""
    original = module.LayerInfo.calculate_macs

    def calculate_macs(info: Any) -> None:
        if isinstance(info.module, _layers()[1]):
            info.macs = _macs(info.module, info.input_size, info.output_size)
        else:
            original(info)

    module.LayerInfo.calculate_macs = calculate_macs


def _add_own_parts(module: Any) -> None:
    original = module.ModelStatistics.__init__

    def initialise(self: Any, summary_list: list, *args: Any, **kwargs: Any) -> None:
        original(self, summary_list, *args, **kwargs)
        packs = [i for i in summary_list if isinstance(i.module, _layers()[1]) and not i.is_leaf_layer]
        self.total_mult_adds += sum(info.macs for info in packs)

    module.ModelStatistics.__init__ = initialise
