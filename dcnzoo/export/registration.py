"""dcnzoo's operators in both exporters of ``torch.onnx.export``."""

import functools
import inspect
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dcnzoo.compat import patches
from dcnzoo.export import operators, opsets  # noqa: F401  registers the translations
from dcnzoo.export.fixed_size import GRAPHS
from dcnzoo.export.graph import DynamoGraph, TorchScriptGraph, Value, translations
from dcnzoo.ops import _library


def register_deform_conv2d_onnx_op(use_gathernd: bool = True, enable_openvino_patch: bool = False) -> None:
    """Register deformable convolution in ``torch.onnx.export``, as a graph of older operators.

    Compatible with the package deform_conv2d_onnx_exporter, for ``torchvision.ops.deform_conv2d`` and
    dcnzoo's operator; ``opset_version`` 18 to 23, and 12 to 20 with ``dynamo=False``. For the standard
    operator DeformConv, see :func:`register_onnx_ops`.

    Args:
        use_gathernd: sample by ``GatherND``; otherwise by ``GatherElements``.
        enable_openvino_patch: accepted but ignored: OpenVINO reads these graphs unpatched.
    """
    register_onnx_ops("gathernd" if use_gathernd else "gatherelements")


def register_onnx_ops(deform_conv: str = "auto") -> None:
    """Register dcnzoo's operators in ``torch.onnx.export``, for ``dynamo=True`` and ``dynamo=False``.

    ``deform_conv`` selects the translation of deformable convolution
    (:mod:`dcnzoo.export.operators.deform_conv`). A later call replaces an earlier one. torch's default
    exporter has no persistent registry, so the patch ``onnx_export`` of :mod:`dcnzoo.compat.patches` adds
    :func:`translation_table` to the arguments of ``torch.onnx.export``.

    Raises:
        ValueError: ``deform_conv`` is unknown. The opset is checked at export.
    """
    opsets.check_target(deform_conv, max(opsets.FIRST.values()))
    for opset in opsets.TORCHSCRIPT:
        for name, translation in translations.items():
            torch.onnx.register_custom_op_symbolic(name, _symbolic(translation, opset, deform_conv), opset)
        for name in _untranslated():
            torch.onnx.register_custom_op_symbolic(name, _refusing(_no_translation(name)), opset)
    global _registered_form
    _registered_form = deform_conv
    patches.switch_on(_PATCH)


_registered_form = "auto"  # of the last call of register_onnx_ops


def _export(export: Callable, *args: Any, **kwargs: Any) -> Any:
    """``torch.onnx.export``; with ``dynamo=True``, translate dcnzoo's operators or explain why not."""
    # another program may have wrapped it: a wrapper of *args, **kwargs has no such parameter
    parameter = inspect.signature(export).parameters.get("dynamo")
    if not kwargs.get("dynamo", True if parameter is None else parameter.default):
        with warnings.catch_warnings():  # the warning would point to this line, not to the caller's
            warnings.filterwarnings("ignore", "You are using the legacy", DeprecationWarning)
            return export(*args, **kwargs)
    try:
        table = translation_table(kwargs.get("opset_version") or _default_opset(), _registered_form)
    except ValueError as error:  # an error only for models with these operators
        table = dict.fromkeys(dict(_overloads(translations)).values(), _refusing(str(error)))
    kwargs["custom_translation_table"] = {**table, **(kwargs.get("custom_translation_table") or {})}
    try:
        return export(*args, **kwargs)
    except RuntimeError as error:  # torch wraps it in a long report
        cause = first_cause(error)
        *_, place = traceback.extract_tb(cause.__traceback__)
        if Path(__file__).parent not in Path(place.filename).parents:
            raise
        raise ValueError(str(cause)) from None


def _default_opset() -> int:
    """The opset of ``torch.onnx.export`` without the argument: a constant that torch keeps to itself."""
    from torch.onnx import _constants

    return getattr(_constants, "ONNX_DEFAULT_OPSET", opsets.DYNAMO[0])


def first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else first_cause(error.__cause__)


_PATCH = patches.Patch(
    "onnx_export",
    "torch.onnx.export",
    "its default exporter has no registry of translations; register_onnx_ops() was called",
    "all",
    lambda changes: changes.wrap(torch.onnx, "export", _export),
)


def _refusing(message: str) -> Callable:
    def refuse(*arguments: Any) -> None:
        raise ValueError(message)

    return refuse


def translation_table(opset_version: int, deform_conv: str = "auto") -> dict[Callable, Callable]:
    """Return the ``custom_translation_table`` for ``torch.onnx.export(dynamo=True)`` at the same opset.

    Raises:
        ValueError: ``deform_conv`` or the exporter does not support this opset; at export: its
            ``opset_version`` is another one.
    """
    from onnxscript import evaluator

    opsets.check_target(deform_conv, opset_version)
    opsets.require_opset(opset_version)

    def onnxscript_function(graph: Callable) -> Callable:
        def translate(*values: Any, **options: Any) -> Any:
            recorded = getattr(evaluator.default(), "opset", None)  # of torch's exporter
            if recorded is not None and recorded.version != opset_version:
                raise ValueError(
                    f"translation_table: opset_version: expected {recorded.version}, as in "
                    f"torch.onnx.export, got {opset_version}"
                )
            return graph(DynamoGraph(opset_version, deform_conv), *values, **options)

        return translate

    graphs = GRAPHS | {overload: translations[name] for name, overload in _overloads(translations)}
    table = {overload: onnxscript_function(graph) for overload, graph in graphs.items()}
    for name, overload in _overloads(_untranslated()):
        table[overload] = _refusing(_no_translation(name))
    return table


def _untranslated() -> set[str]:
    """Return the operators that have no translation."""
    return {f"dcnzoo::{name}" for name in _library.names() if not name.startswith("_")} - translations.keys()


def _no_translation(name: str) -> str:
    return f"{name.removeprefix('dcnzoo::')} to ONNX: not supported: it has no translation to ONNX operators"


def _overloads(names: Iterable[str]) -> Iterator[tuple[str, Callable]]:
    """Yield the operators that are defined, by name: torchvision's may not be."""
    for name in names:
        namespace, operator = name.split("::")
        if packet := getattr(getattr(torch.ops, namespace), operator, None):
            yield name, packet.default


def _symbolic(translation: Callable, opset: int, deform_conv: str) -> Callable:
    from torch.onnx.symbolic_helper import parse_args

    @functools.wraps(translation)  # parse_args counts the function's parameters
    def symbolic(g: Any, *arguments: Any) -> Value:
        omitted = [isinstance(a, torch.Value) and a.node().mustBeNone() for a in arguments]
        present = (None if none else a for a, none in zip(arguments, omitted, strict=True))
        return translation(TorchScriptGraph(opset, deform_conv, g), *present)

    parameters = list(inspect.signature(translation).parameters.values())[1:]
    return parse_args(*(_KINDS[parameter.annotation] for parameter in parameters))(symbolic)


# torch's codes for the types of an operator's arguments
_KINDS: dict[Any, Any] = {Value: "v", int: "i", bool: "i", float: "f", Sequence[int]: "is"}
