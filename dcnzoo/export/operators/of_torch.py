"""Operators of torch that its own exporter lacks, or translates wrongly, as ONNX nodes."""

from dcnzoo.export.graph import DYNAMO, Graph, Value, translates


@translates("aten::sort.stable", [DYNAMO])
def sort(
    g: Graph, values: Value, stable: bool, dim: int = -1, descending: bool = False
) -> tuple[Value, Value]:
    """``torch.sort(stable=True)``, which torch's exporter lacks: TopK ranks equal values by index."""
    return g.TopK(values, g.dims(values, dim), axis=dim, largest=int(descending))


@translates("aten::t", [DYNAMO])
def transpose(g: Graph, value: Value) -> Value:
    """``torch.t``. For a vector, torch's exporter renames the value, and fails if it is a buffer."""
    return g.Transpose(value, perm=[1, 0]) if len(g.static_shape(value)) == 2 else g.Identity(value)


@translates("aten::_is_all_true", [DYNAMO])
def all_true(g: Graph, values: Value) -> Value:
    """``aten._is_all_true``, which torch's exporter lacks."""
    return g.Cast(g.ReduceMin(g.Cast(values, to=6), keepdims=0), to=9)  # int32, bool
