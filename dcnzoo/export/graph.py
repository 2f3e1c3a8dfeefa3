"""One way to write ONNX nodes for both of torch's exporters.

A translation takes a :class:`Graph` and calls nodes by their ONNX names: ``g.Add(a, b)``,
``g.Transpose(a, perm=[0, 2, 1])``. What it produces is then the same whichever exporter asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Value = Any  # a value of the graph under construction; its class is the exporter's
FLOAT, INT64, DOUBLE = 1, 7, 11  # onnx.TensorProto.DataType, which Cast wants


@dataclass(frozen=True)
class Translation:
    """What an operator becomes: a function of (graph, *arguments of the operator).

    Attributes:
        rank: of the first result, where it is not that of the first argument.
        same_type: whether the first result has the type of the first argument.
    """

    function: Callable
    rank: int | None = None
    same_type: bool = True


translations: dict[str, Translation] = {}


def translates(name: str, **settings: Any) -> Callable[[Callable], Callable]:
    """Decorator for the ONNX translation of the operator ``namespace::name``."""

    def add(function: Callable) -> Callable:
        translations[name] = Translation(function, **settings)
        return function

    return add


class Graph:
    """The nodes of one opset, and what is known of a value while the graph is being built.

    ``deform_conv``: what deformable convolution becomes (:mod:`dcnzoo.export.operators.deform_conv`).
    """

    def __init__(self, opset: int, deform_conv: str = "auto") -> None:
        self.opset = opset
        self.deform_conv = deform_conv

    def size(self, value: Value, axis: int) -> int:
        """The size of an axis, which must not be dynamic."""
        size = self.shape(value)[axis]
        if not isinstance(size, int):
            raise ValueError(
                f"to ONNX: expected a fixed size on axis {axis} (only batch, height, width and numbers of "
                f"boxes or queries may be dynamic), got shape {self.shape(value)}"
            )
        return size

    def ints(self, *values: int) -> Value:
        return self.Constant(value_ints=list(values))

    def int(self, value: int) -> Value:
        return self.Constant(value_int=value)

    def floats(self, *values: float) -> Value:
        return self.Constant(value_floats=[float(value) for value in values])

    def float(self, value: float) -> Value:
        return self.Constant(value_float=float(value))

    def number(self, value: float, kind: int) -> Value:
        """A scalar of a type."""
        return self.Cast(self.float(value), to=kind)

    # Both by Reshape: Squeeze and Unsqueeze have changed their form between opsets.

    def shaped(self, value: Value, *shape: int | Value) -> Value:
        """``value`` in another shape: sizes, 0 (as it was) and -1 (what is left), or 1-D values."""
        if all(isinstance(size, int) for size in shape):
            return self.Reshape(value, self.ints(*shape))
        parts = [self.ints(size) if isinstance(size, int) else size for size in shape]
        return self.Reshape(value, self.Concat(*parts, axis=0))

    def sizes(self, value: Value, *axes: int) -> Value:
        """The sizes of some axes as a 1-D value."""
        return self.Gather(self.Shape(value), self.ints(*axes), axis=0)

    def range(self, value: Value, axis: int) -> Value:
        """0, 1, 2, … along an axis: a 1-D value."""
        length = self.Gather(self.Shape(value), self.int(axis), axis=0)
        return self.Range(self.int(0), length, self.int(1))

    def sum(self, value: Value, axis: int) -> Value:
        """Over an axis, which is then gone."""
        if self.opset < 13:  # the axis was an attribute
            return self.ReduceSum(value, axes=[axis], keepdims=0)
        return self.ReduceSum(value, self.ints(axis), keepdims=0)

    # What the exporters do differently:

    def __getattr__(self, node: str):
        raise NotImplementedError

    def type_of(self, value: Value) -> int:
        """The type of its elements, as onnx.TensorProto.DataType."""
        raise NotImplementedError

    def shape(self, value: Value) -> list:
        """Its sizes; what is dynamic is no int."""
        raise NotImplementedError


class DynamoGraph(Graph):
    """Nodes for ``torch.onnx.export(dynamo=True)``, which records calls of onnxscript's."""

    def __init__(self, opset: int, deform_conv: str = "auto") -> None:
        super().__init__(opset, deform_conv)
        from onnxscript.values import Opset

        self._nodes = Opset("", opset)

    def __getattr__(self, node: str):
        return getattr(self._nodes, node)

    def repeat(self, turns: list[int], value: Value, step: Callable[[Graph, Value, Value], Value]) -> Value:
        """``value``, put through ``step(graph, value, turn)`` for each turn: by an ONNX ``Scan``."""
        import onnx_ir as ir

        body = _Body(self.opset)
        before, turn = ir.Value(name="body_before"), ir.Value(name="body_turn")
        after = step(body, before, turn)
        for i, node in enumerate(body.nodes):
            node.outputs[0].name = f"body_{i}"  # a name of the outer graph's would be taken for its value
        graph = ir.Graph([before, turn], [after], nodes=body.nodes, name="body")
        return self.Scan(value, self.ints(*turns), body=graph, num_scan_inputs=1)

    def type_of(self, value: Value) -> int:
        return int(value.dtype)

    def shape(self, value: Value) -> list:
        return list(value.shape)


class _Body(Graph):
    """The nodes that :meth:`DynamoGraph.repeat` repeats; they may use values from outside."""

    def __init__(self, opset: int) -> None:
        super().__init__(opset)
        from onnx_ir.tape import Tape

        self._tape = Tape()

    @property
    def nodes(self) -> list:
        return list(self._tape.nodes)

    def __getattr__(self, node: str):
        def add(*inputs: Value, **attributes: Any) -> Value:
            return self._tape.op(node, inputs, attributes, version=self.opset)

        return add


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
            while inputs and inputs[-1] is None:  # optional ones at the end are left out
                inputs = inputs[:-1]
            attributes = {f"{name}_{self._suffix(value)}": value for name, value in attributes.items()}
            return self._graph.op(node, *inputs, **attributes)

        return add

    def _suffix(self, value: Any) -> str:
        return self._SUFFIXES[type(value[0] if isinstance(value, list) else value)]

    def type_of(self, value: Value) -> int:
        return self._TYPES[value.type().scalarType()]

    def shape(self, value: Value) -> list:
        return value.type().varyingSizes() or [None] * 5
