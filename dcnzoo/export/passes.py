"""Changes to traced programs and ONNX graphs that torch's exporter needs, and corrections of its graphs.

:mod:`dcnzoo.export.onnx` calls each once. Each docstring says what fails without it.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    import onnx
    import onnx_ir


def check_ranges(program: torch.export.ExportedProgram, dynamic_shapes: Any) -> None:
    """Refuse a graph for a limited range of sizes: tracing treats an axis of length 1 as constant.

    Limits that the caller gave, by a ``Dim``, are not refused.
    """
    limits = {getattr(axis, "max", None) for axis in tree_leaves(dynamic_shapes)}
    for symbol, sizes in program.range_constraints.items():
        computed = str(symbol).startswith("u")  # a number in the graph, not the size of an input
        if not computed and sizes.upper.is_finite and sizes.upper < 2**31 and sizes.upper not in limits:
            raise ValueError(
                "dynamic_shapes: expected an example in which no feature map has a height or width of 1, "
                f"got a graph for sizes up to {sizes.upper} ({symbol}) only; use a larger example"
            )


def remove_assertions(program: torch.export.ExportedProgram) -> None:
    """Remove the checks of types that ``.to`` adds: in ``torch.vmap``, they fail with symbolic sizes."""
    for node in program.graph.find_nodes(
        op="call_function", target=torch.ops.aten._assert_tensor_metadata.default
    ):
        program.graph.erase_node(node)


def set_types_of_ranges(program: torch.export.ExportedProgram) -> None:
    """Set ``dtype`` of each ``arange``: without it, torch's exporter gives ``arange(0, 8.0)`` two types."""
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.arange.start):
        node.update_kwarg("dtype", node.meta["val"].dtype)


def name_nodes(model: "onnx_ir.Model") -> None:
    """Let the names of nodes of dcnzoo's operators begin with ``dcnzoo_``; remove torch's notes on each node.

    Quantisers, which must leave out the arithmetic of coordinates, select nodes by their names.
    """
    for node in model.graph.all_nodes():
        if "target=torch.ops.dcnzoo." in node.metadata_props.get("pkg.torch.onnx.fx_node", ""):
            node.name = f"dcnzoo_{node.name}"
        node.metadata_props.clear()


def remove_default_reductions(model: "onnx_ir.Model") -> None:
    """Remove ``reduction="none"``, the default of ``ScatterND``: TensorRT's parser refuses the attribute."""
    for node in model.graph.all_nodes():
        reduction = node.attributes.get("reduction") if "Scatter" in node.op_type else None
        if reduction is not None and reduction.value == "none":
            del node.attributes["reduction"]


def copy_constants_into_scans(model: "onnx.ModelProto") -> None:
    """Copy the constants that the body of a ``Scan`` reads into it: OpenVINO reads no values from outside."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for body in (attribute.g for attribute in node.attribute if node.op_type == "Scan"):
            read = {name for inner in body.node for name in inner.input if name in constants}
            names = {name: f"{name}_in_{node.name}" for name in sorted(read)}
            for name, copy in names.items():
                body.initializer.add().CopyFrom(constants[name])
                body.initializer[-1].name = copy
            for inner in body.node:
                inner.input[:] = [names.get(name, name) for name in inner.input]
