"""Smaller ONNX files: weights and layers in float16 or int8.

The network becomes smaller; what follows it stays in float32: positions of samples, boxes, scores, NMS and
masks. So do the last layers before those in int8, whose results have too many different values for 8 bits,
and deformable convolutions, which no runtime computes in int8.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from dcnzoo.export.exporters import quiet

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

Feed = Mapping[str, np.ndarray]  # input → value

# Operators with weights, whose inputs from earlier layers may be inexact.
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "DeformConv"}
# Inputs that must be exact: positions in images, and candidates for boxes.
_EXACT = {
    "DeformConv": (2, 4),
    "Cos": (0,),
    "Floor": (0,),
    "GridSample": (1,),
    "NonMaxSuppression": (0, 1),
    "RoiAlign": (1,),
    "Sin": (0,),
    "Sqrt": (0,),  # of a sum of squares, which may exceed the range of float16
    "TopK": (0,),
}
_INT8 = ("Conv", "Gemm", "MatMul")  # onnxruntime has int8 kernels for these
_ACTIVATIONS = ("Clip", "Relu")  # become part of the rounding to int8
# Operators that stay in float32: constants, loops, and those that ONNX or most runtimes lack in float16.
_FLOAT32 = {
    *("Constant", "ConstantOfShape", "CumSum", "DeformConv", "If", "Loop", "NonMaxSuppression", "Range"),
    *("RoiAlign", "Scan", "TopK"),
}
_ALWAYS_FLOAT32 = {"Resize": (1, 2)}  # inputs: region and scales


def to_float16(path: str | os.PathLike) -> None:
    """Convert the network of an ONNX file to float16, in place; inputs and outputs stay float32.

    Weights of deformable convolutions are stored in float16, too, but used in float32: positions in a map of
    more than 256 pixels are not exact in float16.
    """
    import onnx

    model = _named(onnx.shape_inference.infer_shapes(onnx.load(path)))
    exact, _ = _exact_nodes(model)
    half = {node.name for node in model.graph.node if node.name not in exact and node.op_type not in _FLOAT32}
    _Float16(model.graph, half).convert()
    onnx.save(model, path)


class _Float16:
    """Converts nodes of a graph to float16, with casts where float32 values enter and leave.

    The converter of onnxruntime rounds the results of every node to float16, also between those that stay
    in float32.
    """

    def __init__(self, graph: GraphProto, half: set[str]) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self.graph, self.half = graph, half
        self.kinds, self.helper, self.arrays = TensorProto, helper, numpy_helper
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        values = (*graph.input, *graph.output, *graph.value_info)
        self.floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.floats |= {name for name, w in self.weights.items() if w.data_type == TensorProto.FLOAT}
        self.nodes: list[NodeProto] = []
        self.made: set[str] = set()  # values in either type that exist already

    def convert(self) -> None:
        nodes = list(self.graph.node)
        self.made = {*self.weights, *(value.name for value in self.graph.input)}
        for node in nodes:
            convert = self._convert if node.name in self.half else self._keep
            convert(node)
        for value in self.graph.output:
            self._float32(value.name)
        used = {name for node in self.nodes for name in _values(node)}
        weights = [tensor for name, tensor in self.weights.items() if name in used]
        for field, items in (("node", self.nodes), ("initializer", weights), ("value_info", [])):
            del getattr(self.graph, field)[:]
            getattr(self.graph, field).extend(items)

    def _convert(self, node: NodeProto) -> None:
        for i, name in enumerate(node.input):
            if name in self.floats and i not in _ALWAYS_FLOAT32.get(node.op_type, ()):
                node.input[i] = self._float16(name)
            elif name:
                self._float32(name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == self.kinds.FLOAT:
                attribute.i = self.kinds.FLOAT16
        for i, name in enumerate(node.output):
            if name in self.floats:
                node.output[i] = f"{name}_float16"
        self.nodes.append(node)
        self.made.update(node.output)

    def _keep(self, node: NodeProto) -> None:
        if node.op_type == "DeformConv":
            name = node.input[1]
            if name in self.weights and name in self.floats:
                self._float16(name)
                del self.weights[name]
                self.made.remove(name)
        for name in _values(node):
            self._float32(name)
        self.nodes.append(node)
        self.made.update(node.output)

    def _float16(self, name: str) -> str:
        """Return the name of a value's float16 version; add what computes it, if it is new."""
        short = f"{name}_float16"
        if short not in self.made:
            if name in self.weights:
                self.weights[short] = self._rounded(self.weights[name], short)
            else:
                self._cast(name, short, self.kinds.FLOAT16)
            self.made.add(short)
        return short

    def _float32(self, name: str) -> None:
        if name not in self.made and f"{name}_float16" in self.made:
            self._cast(f"{name}_float16", name, self.kinds.FLOAT)
            self.made.add(name)

    def _cast(self, name: str, result: str, kind: int) -> None:
        self.nodes.append(self.helper.make_node("Cast", [name], [result], f"{result}_cast", to=kind))

    def _rounded(self, tensor: TensorProto, name: str) -> TensorProto:
        values = self.arrays.to_array(tensor)
        limit = np.finfo(np.float16).max
        clipped = np.where(np.isfinite(values), values.clip(-limit, limit), values)
        return self.arrays.from_array(clipped.astype(np.float16), name)


def to_int8(path: str | os.PathLike, samples: Iterable[Feed]) -> None:
    """Quantise the network of an ONNX file to int8, in place, by onnxruntime's static quantisation (QDQ).

    Args:
        samples: inputs, whose mean ranges of values become those of int8.

    Raises:
        ValueError: the model has no layer for int8.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.remaining = iter(samples)

        def get_next(self) -> Feed | None:
            return next(self.remaining, None)

    model = _named(onnx.load(path))
    chosen = _int8_nodes(model)
    if not chosen:
        raise ValueError("int8: expected a model with convolutions or linear layers, got none")
    with quiet():  # it advises to simplify the graph first: the exporter has done that
        quantize_static(
            model,
            path,
            Reader(),
            op_types_to_quantize=[*_INT8, *_ACTIVATIONS],
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True, "MatMulConstBOnly": True},
        )
    quantised = onnx.load(path)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    onnx.save(quantised, path)


def _int8_nodes(model: ModelProto) -> list[str]:
    """Return the names of the nodes to quantise."""
    _, last = _exact_nodes(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    chosen, results = [], set()
    for node in model.graph.node:
        if node.op_type in _INT8 and node.input[1] in weights and node.name not in last:
            chosen.append(node.name)
            results.update(node.output)
        elif node.op_type in _ACTIVATIONS and node.input[0] in results:
            chosen.append(node.name)
    return chosen


def _exact_nodes(model: ModelProto) -> tuple[set[str], set[str]]:
    """Return the nodes that must stay exact, and the last layers before them."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    maker = {output: node.name for node in graph.node for output in node.output}
    inputs = {node.name: [maker[value] for value in _values(node) if value in maker] for node in graph.node}
    layers = {
        node.name
        for node in graph.node
        if node.op_type in _LAYERS or (node.op_type == "MatMul" and node.input[1] in weights)
    }
    start = [value.name for value in graph.output]
    for node in graph.node:
        start += [node.input[i] for i in _EXACT.get(node.op_type, ()) if i < len(node.input)]
    waiting = [maker[value] for value in start if value in maker]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            if name not in layers:
                waiting += inputs[name]
    return seen - layers, seen & layers


def _values(node: NodeProto) -> Iterator[str]:
    """Yield the names of the values that a node reads, also inside its loops."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _values(inner)


def _named(model: ModelProto) -> ModelProto:
    """Give each node a name of its own."""
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{i}"
    return model
