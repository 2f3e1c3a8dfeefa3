"""Create ONNX nodes in the same way for both of torch's exporters.

A translation receives a :class:`Graph` and creates nodes by their ONNX names: ``g.Add(a, b)``,
``g.Transpose(a, perm=[0, 2, 1])``. Both exporters then produce the same nodes;
:mod:`dcnzoo.export.aten_graph` computes them by operators of torch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Value = Any  # a value of the graph; its class depends on the exporter
FLOAT, INT64, DOUBLE = 1, 7, 11  # onnx.TensorProto.DataType, for Cast

# who uses a translation: torch.onnx.export(dynamo=True), dynamo=False, and dcnzoo.export.decompositions
DYNAMO, TORCHSCRIPT, TORCH = USERS = ("dynamo", "torchscript", "torch")
EXPORTERS = DYNAMO, TORCHSCRIPT  # for operators that dcnzoo.export.decompositions leaves as they are
# of each user: operator → function of (graph, *arguments of the operator)
translations: dict[str, dict[str, Callable]] = {user: {} for user in USERS}


def translates(name: str, users: Sequence[str] = USERS) -> Callable[[Callable], Callable]:
    """Decorator that registers the ONNX translation of ``namespace::operator`` or of its ``.overload``."""

    def add(function: Callable) -> Callable:
        for user in users:
            translations[user][name] = function
        return function

    return add


class Graph:
    """Creates nodes of one opset and gives shapes and types of values during construction.

    ``deform_conv``: the translation of deformable convolution (:mod:`dcnzoo.export.operators.deform_conv`).
    """

    def __init__(self, opset: int, deform_conv: str = "auto") -> None:
        self.opset = opset
        self.deform_conv = deform_conv

    def fixed_size(self, value: Value, axis: int) -> int:
        """Return the size of an axis.

        Raises:
            ValueError: the axis is dynamic.
        """
        size = self.static_shape(value)[axis]
        if not isinstance(size, int):
            raise ValueError(
                f"to ONNX: expected a fixed size on axis {axis} (only batch, height, width and numbers of "
                f"boxes or queries may be dynamic), got shape {self.static_shape(value)}"
            )
        return size

    def ints(self, *values: int) -> Value:
        return self.Constant(value_ints=list(values))

    def integer(self, value: int) -> Value:
        return self.Constant(value_int=value)

    def floats(self, *values: float) -> Value:
        return self.Constant(value_floats=[float(value) for value in values])

    def number(self, value: float, kind: int) -> Value:
        """Return a scalar of the type ``kind``."""
        return self.Cast(self.Constant(value_float=float(value)), to=kind)

    # Uses Reshape: Squeeze and Unsqueeze take their axes differently in different opsets.

    def reshape(self, value: Value, *shape: int | Value) -> Value:
        """Reshape ``value``. Each size is an int, 0 (unchanged), -1 (the rest) or a 1-D value."""
        if all(isinstance(size, int) for size in shape):
            return self.Reshape(value, self.ints(*shape))
        parts = [self.ints(size) if isinstance(size, int) else size for size in shape]
        return self.Reshape(value, self.Concat(*parts, axis=0))

    def dims(self, value: Value, *axes: int) -> Value:
        """Return the sizes of some axes as a 1-D value."""
        return self.Gather(self.Shape(value), self.ints(*axes), axis=0)

    def dim(self, value: Value, axis: int) -> Value:
        """Return the size of an axis as a scalar."""
        return self.Gather(self.Shape(value), self.integer(axis), axis=0)

    def arange(self, value: Value, axis: int) -> Value:
        """Return 0, 1, 2, … along an axis as a 1-D value."""
        return self.Range(self.integer(0), self.dim(value, axis), self.integer(1))

    # Implemented per exporter:

    def __getattr__(self, node: str):
        raise NotImplementedError

    def type_of(self, value: Value) -> int:
        """Return the type of the elements, as onnx.TensorProto.DataType."""
        raise NotImplementedError

    def static_shape(self, value: Value) -> list:
        """Return the sizes; a dynamic size is not an int."""
        raise NotImplementedError


class DynamoGraph(Graph):
    """Nodes for ``torch.onnx.export(dynamo=True)``, which records calls of onnxscript operators."""

    def __init__(self, opset: int, deform_conv: str = "auto") -> None:
        super().__init__(opset, deform_conv)
        from onnxscript.values import Opset

        self._nodes = Opset("", opset)

    def __getattr__(self, node: str):
        return getattr(self._nodes, node)

    def type_of(self, value: Value) -> int:
        return int(value.dtype)

    def static_shape(self, value: Value) -> list:
        return list(value.shape)


class TorchScriptGraph(Graph):
    """Nodes for ``torch.onnx.export(dynamo=False)``."""

    _SUFFIXES = {int: "i", float: "f", str: "s"}
    _TYPES = {"Float": FLOAT, "Half": 10, "Double": DOUBLE, "BFloat16": 16, "Long": INT64}

    def __init__(self, opset: int, deform_conv: str, graph: Any) -> None:
        super().__init__(opset, deform_conv)
        self._graph = graph

    def __getattr__(self, node: str):
        def add(*inputs: Value, **attributes: Any) -> Value:
            if node == "Constant":
                (value,) = attributes.values()
                return self._graph.op("Constant", value_t=torch.tensor(value))
            while inputs and inputs[-1] is None:  # omit optional inputs at the end
                inputs = inputs[:-1]
            attributes = {f"{name}_{self._suffix(value)}": value for name, value in attributes.items()}
            return self._graph.op(node, *inputs, **attributes)

        return add

    def _suffix(self, value: Any) -> str:
        return self._SUFFIXES[type(value[0] if isinstance(value, list) else value)]

    def type_of(self, value: Value) -> int:
        return self._TYPES[value.type().scalarType()]

    def static_shape(self, value: Value) -> list:
        return value.type().varyingSizes() or [None] * 5
