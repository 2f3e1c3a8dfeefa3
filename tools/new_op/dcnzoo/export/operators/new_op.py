"""new_op as ONNX nodes."""

from __future__ import annotations

from dcnzoo.export.graph import Graph, Value, translates


@translates("dcnzoo::new_op")
def new_op(g: Graph, input: Value, weight: Value) -> Value:
    return g.Mul(input, g.shaped(weight, 1, -1, 1, 1))
