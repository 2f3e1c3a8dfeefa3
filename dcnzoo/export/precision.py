"""Smaller ONNX files: weights and layers in float16 or int8.

The network becomes smaller; what follows it stays in float32: positions of samples, boxes, scores, NMS and
masks. So do the last layers before those in int8, whose results have too many different values for 8 bits,
and deformable convolutions, which no runtime computes in int8.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dcnzoo.export.onnx import quiet

Feed = Mapping[str, np.ndarray]  # input → value

# Operators with weights, whose inputs from earlier layers may be inexact.
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "DeformConv"}
# Inputs that must be exact: positions in images, and candidates for boxes. These operators stay in float32.
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
# All operators that stay in float32: also constants, sums, loops, and those that ONNX lacks in float16
_FLOAT32 = {*_EXACT, "Constant", "ConstantOfShape", "CumSum", "If", "Loop", "Range", "Scan"}
_ALWAYS_FLOAT32 = {"Resize": (1, 2)}  # inputs: region and scales


def to_float16(path: str | os.PathLike) -> None:
    """Convert the network of an ONNX file to float16, in place; inputs and outputs stay float32.

    Weights of deformable convolutions are stored in float16, too, but used in float32: positions in a map of
    more than 256 pixels are not exact in float16. The converter of onnxruntime rounds the results of every
    node to float16, also between those that stay in float32.
    """
    model = _named(onnx.shape_inference.infer_shapes(onnx.load(path)))
    graph, (exact, _) = model.graph, _exact_nodes(model)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    typed = (*graph.input, *graph.output, *graph.value_info)
    floats = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {name for name, tensor in weights.items() if tensor.data_type == TensorProto.FLOAT}
    nodes: list[NodeProto] = []
    halves: dict[str, str] = {}  # float32 value → its float16 version

    def cast(name: str, result: str, kind: int) -> None:
        nodes.append(helper.make_node("Cast", [name], [result], f"{result}_cast", to=kind))

    def half(name: str) -> str:
        if name not in halves:
            halves[name] = short = f"{name}_float16"
            if name in weights:
                values, limit = numpy_helper.to_array(weights[name]), np.finfo(np.float16).max
                values = np.where(np.isfinite(values), values.clip(-limit, limit), values)
                weights[short] = numpy_helper.from_array(values.astype(np.float16), short)
            else:
                cast(name, short, TensorProto.FLOAT16)
        return halves[name]

    for node in graph.node:
        if node.name in exact or node.op_type in _FLOAT32:
            if node.op_type == "DeformConv" and (name := node.input[1]) in weights.keys() & floats:
                cast(half(name), name, TensorProto.FLOAT)
                del weights[name]
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if name in floats and i not in _ALWAYS_FLOAT32.get(node.op_type, ()):
                node.input[i] = half(name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in floats:
                halves[name] = node.output[i] = f"{name}_float16"
                cast(halves[name], name, TensorProto.FLOAT)
    used = {value.name for value in graph.output} | {name for node in nodes for name in _values_read(node)}
    parts = {
        "node": [node for node in nodes if used.intersection(node.output)],
        "initializer": [tensor for name, tensor in weights.items() if name in used],
        "value_info": [],
    }
    for field, items in parts.items():
        del getattr(graph, field)[:]
        getattr(graph, field).extend(items)
    onnx.save(model, path)


def to_int8(path: str | os.PathLike, samples: Iterable[Feed]) -> None:
    """Quantise the network of an ONNX file to int8, in place, by onnxruntime's static quantisation (QDQ).

    Args:
        samples: values of at least the inputs of the model. Their mean ranges become those of int8.

    Raises:
        ValueError: the model has no layer for int8.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.remaining = iter(samples)

        def get_next(self) -> Feed | None:
            sample = next(self.remaining, None)
            return sample and {name: sample[name] for name in names}

    model = _named(onnx.load(path))
    for node in model.graph.node:
        for attribute in list(node.attribute):
            if attribute.type == onnx.AttributeProto.INTS and not attribute.ints:
                node.attribute.remove(attribute)  # onnxruntime cannot copy it, in a Scan
    names = [value.name for value in model.graph.input]
    chosen = _int8_nodes(model)
    if not chosen:
        raise ValueError("int8: expected a model with convolutions or linear layers, got none")
    # it advises to simplify the graph, which the exporter has done, and divides infinite ranges
    with quiet(), np.errstate(invalid="ignore"):
        quantize_static(
            model,
            path,
            Reader(),
            op_types_to_quantize=[*_INT8, *_ACTIVATIONS],
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # weights of 7 bits: CPUs without VNNI add two products in 16 bits
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
    inputs = {node.name: [maker[name] for name in _values_read(node) if name in maker] for node in graph.node}
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


def _named(model: ModelProto) -> ModelProto:
    """Give each node a name of its own."""
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{i}"
    return model


def _values_read(node: Any) -> Iterator[str]:
    """Yield the names of the values that a node reads, also inside its loops."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _values_read(inner)
