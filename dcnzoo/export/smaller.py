"""Smaller ONNX files: weights in float16, or the network in int8.

In int8, what follows the network stays in float32: positions of samples, boxes, scores, NMS and masks. So do
the last layers before those, whose results have too many different values for 8 bits, and deformable
convolutions, which no runtime computes in int8.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Feed = Mapping[str, np.ndarray]  # input → value

# Operators with weights in their second input, whose inputs from earlier layers may be inexact.
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "DeformConv", "MatMul"}
# Inputs that must be exact: positions in images, and candidates for boxes.
_EXACT = {
    "DeformConv": (2, 4),
    "Cos": (0,),
    "Floor": (0,),
    "GridSample": (1,),
    "NonMaxSuppression": (0, 1),
    "RoiAlign": (1,),
    "Sin": (0,),
    "Sqrt": (0,),
    "TopK": (0,),
}
_INT8 = ("Conv", "Gemm", "MatMul")  # onnxruntime has int8 kernels for these
_ACTIVATIONS = ("Clip", "Relu")  # become part of the rounding to int8


def to_float16(path: str | os.PathLike) -> None:
    """Store the weights of an ONNX file in float16, in place. Runtimes compute in float32, as before.

    Runtimes that can compute in float16 do so by a setting of their own, such as TensorRT's ``--fp16``.
    """
    import onnx
    from onnx import TensorProto, numpy_helper
    from onnx.helper import make_node

    model = onnx.load(path)
    layers = {name for node in model.graph.node if node.op_type in _LAYERS for name in node.input[1:2]}
    limit, casts = np.finfo(np.float16).max, []
    for tensor in model.graph.initializer:
        name = tensor.name
        if name in layers and tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).clip(-limit, limit).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
            casts.append(make_node("Cast", [tensor.name], [name], f"{name}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def to_int8(path: str | os.PathLike, samples: Sequence[Feed]) -> None:
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
            self.left = iter(samples)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    model = _named(onnx.load(path))
    chosen = _int8_nodes(model)
    if not chosen:
        raise ValueError("int8: expected a model with convolutions or linear layers, got none")
    with _quiet():
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
        if node.op_type in _LAYERS and (node.op_type != "MatMul" or node.input[1] in weights)
    }
    start = [value.name for value in graph.output]
    for node in graph.node:
        start += [node.input[i] for i in _EXACT.get(node.op_type, ()) if i < len(node.input)]
    return _upstream([maker[value] for value in start if value in maker], inputs, layers)


def _upstream(
    start: Iterable[str], inputs: Mapping[str, Sequence[str]], layers: set[str]
) -> tuple[set[str], set[str]]:
    """Go from ``start`` to the inputs up to the first layers. Return the nodes on the way, and the layers."""
    seen: set[str] = set()
    waiting = list(start)
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress onnxruntime's advice to simplify the graph first: the exporter has done that."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
