"""Create ONNX nodes for torch's exporter.

A translation receives a :class:`Graph` and creates nodes by their ONNX names: ``g.Add(a, b)``,
``g.Transpose(a, perm=[0, 2, 1])``.
"""

from collections.abc import Callable
from typing import Any

Value = Any  # a value of the graph; its class depends on the exporter
FLOAT, UINT8, INT64, DOUBLE = 1, 2, 7, 11  # onnx.TensorProto.DataType, for Cast

translations: dict[str, Callable] = {}  # functions of (graph, *arguments of the operator)


def translates(name: str) -> Callable[[Callable], Callable]:
    """Decorator that registers the ONNX translation of the operator ``namespace::name``."""

    def add(function: Callable) -> Callable:
        translations[name] = function
        return function

    return add


class Graph:
    """Creates nodes of one opset and gives shapes and types of values during construction.

    ``deform_conv``: the translation of deformable convolution (:mod:`dcnzoo.export.operators.deform_conv`).
    """

    def __init__(self, opset: int, deform_conv: str = "auto") -> None:
        from onnxscript.values import Opset

        self.opset, self.deform_conv = opset, deform_conv
        self._nodes = Opset("", opset)

    def size(self, value: Value, axis: int) -> int:
        """Return the size of an axis.

        Raises:
            ValueError: the axis is dynamic.
        """
        size = self.shape(value)[axis]
        if not isinstance(size, int):
            raise ValueError(
                f"to ONNX: expected a fixed size on axis {axis} (only batch, height, width and numbers of "
                f"boxes or queries may be dynamic), got shape {self.shape(value)}"
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

    def shaped(self, value: Value, *shape: int | Value) -> Value:
        """Reshape ``value``. Each size is an int, 0 (unchanged), -1 (the rest) or a 1-D value."""
        if all(isinstance(size, int) for size in shape):
            return self.Reshape(value, self.ints(*shape))
        parts = [self.ints(size) if isinstance(size, int) else size for size in shape]
        return self.Reshape(value, self.Concat(*parts, axis=0))

    def sizes(self, value: Value, *axes: int) -> Value:
        """Return the sizes of some axes as a 1-D value."""
        return self.Gather(self.Shape(value), self.ints(*axes), axis=0)

    def length(self, value: Value, axis: int) -> Value:
        """Return the size of an axis as a scalar."""
        return self.Gather(self.Shape(value), self.integer(axis), axis=0)

    def range(self, value: Value, axis: int) -> Value:
        """Return 0, 1, 2, … along an axis as a 1-D value."""
        return self.Range(self.integer(0), self.length(value, axis), self.integer(1))

    def __getattr__(self, node: str):
        return getattr(self._nodes, node)

    def type_of(self, value: Value) -> int:
        """Return the type of the elements, as onnx.TensorProto.DataType."""
        return int(value.dtype)

    def shape(self, value: Value) -> list:
        """Return the sizes; a dynamic size is not an int."""
        return list(value.shape)
