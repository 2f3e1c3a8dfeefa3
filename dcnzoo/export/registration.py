"""dcnzoo's operators in torch's exporters to ONNX: a translation table, and symbolic functions.

Both call the translations of :mod:`dcnzoo.export.operators`, with the :class:`dcnzoo.export.graph.Graph` of
the exporter. The table is for ``dynamo=True``, the symbolic functions are for ``dynamo=False``.
"""

from collections.abc import Callable
from typing import Any

import torch

from dcnzoo.export import fixed_size, operators, opsets  # noqa: F401  registers the translations
from dcnzoo.export.graph import DYNAMO, TORCHSCRIPT, DynamoGraph, TorchScriptGraph, Value, translations


def translation_table(
    opset_version: int | None = None, deform_conv: str = "auto"
) -> dict[Callable, Callable]:
    """Return the ``custom_translation_table`` for ``torch.onnx.export``.

    It also translates ``torchvision::deform_conv2d`` if torchvision's operators are defined.

    Args:
        opset_version: 18 to 23. None: the one of the export.
        deform_conv: the form of deformable convolution; see :mod:`dcnzoo.export.opsets`.

    Raises:
        ValueError: ``deform_conv`` or the exporter does not support this opset; at export: its
            ``opset_version`` is another one.
    """
    from onnxscript import evaluator

    opsets.check_form(deform_conv, opset_version or opsets.DEFAULT)

    def onnxscript_function(graph: Callable) -> Callable:
        def translate(*values: Any, **options: Any) -> Any:
            recorder: Any = evaluator.default()  # of torch's exporter
            opset = recorder.opset.version
            if opset != (opset_version or opset):
                expected = f"expected {opset}, as in torch.onnx.export, got {opset_version}"
                raise ValueError(f"translation_table: opset_version: {expected}")
            opsets.check_form(deform_conv, opset)
            return graph(DynamoGraph(opset, deform_conv), *values, **options)

        return translate

    table = {}
    for name, translation in translations[DYNAMO].items():
        if operator := operator_named(name):  # torchvision's may be missing
            table[operator] = onnxscript_function(translation)
    return table


def operator_named(name: str) -> Any:
    """Return the overload of torch with the name of a translation; None if it is not defined."""
    namespace, _, operator = name.partition("::")
    operator, _, overload = operator.partition(".")
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    return packet and getattr(packet, overload or "default")


def register_deform_conv2d_onnx_op(use_gathernd: bool = True, enable_openvino_patch: bool = False) -> None:
    """Register deformable convolution for ``torch.onnx.export(dynamo=False)``, as a graph of older operators.

    Compatible with the package deform_conv2d_onnx_exporter, for ``torchvision.ops.deform_conv2d`` and
    dcnzoo's operator; ``opset_version`` 12 to 20. For ``dynamo=True``, see :func:`translation_table`.

    Args:
        use_gathernd: sample by ``GatherND``; otherwise by ``GatherElements``.
        enable_openvino_patch: accepted but ignored: OpenVINO reads these graphs unpatched.
    """
    register_onnx_ops("gathernd" if use_gathernd else "gatherelements")


def register_onnx_ops(deform_conv: str = "auto") -> None:
    """Register dcnzoo's operators for ``torch.onnx.export(dynamo=False)``; a later call replaces an earlier.

    It calls ``torch.onnx.register_custom_op_symbolic`` for opsets 12 to 20 and changes nothing else.

    Args:
        deform_conv: the form of deformable convolution; see :mod:`dcnzoo.export.opsets`.

    Raises:
        ValueError: ``deform_conv`` is unknown. At export: the opset does not have the form.
    """
    opsets.check_form(deform_conv, opsets.TORCHSCRIPT[-1], opsets.TORCHSCRIPT)
    for opset in opsets.TORCHSCRIPT:
        for name, translation in translations[TORCHSCRIPT].items():
            symbolic = _symbolic(name, translation, opset, deform_conv)
            torch.onnx.register_custom_op_symbolic(name, symbolic, opset)


def _symbolic(name: str, translation: Callable, opset: int, deform_conv: str) -> Callable:
    """Return the translation of an operator as a function for ``register_custom_op_symbolic``."""

    def symbolic(g: Any, *arguments: torch.Value) -> Value:
        opsets.check_form(deform_conv, opset, opsets.TORCHSCRIPT)
        schema = operator_named(name)._schema.arguments  # the operator is defined: a model calls it
        values = [
            value if "Tensor" in str(declared.type) and not value.node().mustBeNone() else _constant(value)
            for value, declared in zip(arguments, schema, strict=False)
        ]
        return translation(TorchScriptGraph(opset, deform_conv, g), *values)

    return symbolic


def _constant(value: torch.Value) -> Any:
    """Return the number, the list of numbers or None of an argument that is not a tensor."""
    node = value.node()
    if node.mustBeNone():
        return None
    if node.kind() == "prim::ListConstruct":
        return [int(part.node().t("value")) for part in node.inputs()]
    return node.t("value").tolist()
