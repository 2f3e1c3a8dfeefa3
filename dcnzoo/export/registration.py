"""dcnzoo's operators as the ``custom_translation_table`` of ``torch.onnx.export``."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from dcnzoo.export import operators, opsets  # noqa: F401  registers the translations
from dcnzoo.export.fixed_size import GRAPHS
from dcnzoo.export.graph import Graph, translations
from dcnzoo.ops import _library


def translation_table(
    opset_version: int = opsets.DEFAULT, deform_conv: str = "auto"
) -> dict[Callable, Callable]:
    """Return the ``custom_translation_table`` for ``torch.onnx.export`` at the same opset.

    Raises:
        ValueError: ``deform_conv`` or the exporter does not support this opset; at export: its
            ``opset_version`` is another one.
    """
    from onnxscript import evaluator

    opsets.check_target(deform_conv, opset_version)

    def onnxscript_function(graph: Callable) -> Callable:
        def translate(*values: Any, **options: Any) -> Any:
            recorded = getattr(evaluator.default(), "opset", None)  # of torch's exporter
            if recorded is not None and recorded.version != opset_version:
                raise ValueError(
                    f"translation_table: opset_version: expected {recorded.version}, as in "
                    f"torch.onnx.export, got {opset_version}"
                )
            return graph(Graph(opset_version, deform_conv), *values, **options)

        return translate

    graphs = GRAPHS | {overload: translations[name] for name, overload in _overloads(translations)}
    table = {overload: onnxscript_function(graph) for overload, graph in graphs.items()}
    missing = {
        f"dcnzoo::{name}" for name in _library.names() if not name.startswith("_")
    } - translations.keys()
    for name, overload in _overloads(missing):
        table[overload] = _refusing(
            f"{name.removeprefix('dcnzoo::')} to ONNX: not supported: it has no translation to ONNX operators"
        )
    return table


def first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else first_cause(error.__cause__)


def _refusing(message: str) -> Callable:
    def refuse(*arguments: Any) -> None:
        raise ValueError(message)

    return refuse


def _overloads(names: Iterable[str]) -> Iterator[tuple[str, Callable]]:
    """Yield the operators that are defined, by name: torchvision's may not be."""
    for name in names:
        namespace, operator = name.split("::")
        if packet := getattr(getattr(torch.ops, namespace), operator, None):
            yield name, packet.default
