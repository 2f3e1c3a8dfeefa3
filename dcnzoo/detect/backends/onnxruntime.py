"""ONNX files in onnxruntime."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcnzoo.detect.backends import Opened, outputs_to_read

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FIRST_DEFORM_CONV = (1, 25)  # the first release of onnxruntime with DeformConv
ONE, ANY = 1, 3  # numbers of values, and types, in protobuf's descriptors
TEXT, MESSAGE = 9, 11
FIELDS = {  # of ONNX's messages, as far as they are needed here: name, number, count, message
    "Model": [("graph", 7, ONE, "Graph")],
    "Graph": [("node", 1, ANY, "Node"), ("output", 12, ANY, "Value")],
    "Node": [("input", 1, ANY, ""), ("output", 2, ANY, ""), ("attribute", 5, ANY, "Attribute")],
    "Attribute": [("g", 6, ONE, "Graph")],
    "Value": [("name", 1, ONE, "")],
}


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, to compare it."""
    return tuple(int(part) for part in version.split(".")[:2])


def open_file(path: str, device: str, threads: int | None, precision: str) -> Opened:
    import onnxruntime

    match = re.fullmatch(r"(cpu)|cuda(?::(\d+))?", device)
    if not match:
        raise ValueError(f"device: expected cpu, cuda or a number, cuda:1, for onnxruntime, got {device!r}")
    number = int(match[2] or 0)
    provider = (CPU, {}) if match[1] else (CUDA, {"device_id": str(number)})
    if provider[0] not in onnxruntime.get_available_providers():
        raise ValueError(f"device: expected cpu, for this onnxruntime has no {provider[0]}, got {device!r}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(_without_unread(path), options, providers=[provider])
        used = session.get_providers()[0]
    except Exception as error:  # onnxruntime's exceptions have no common base class
        if "DeformConv" in str(error) and release(onnxruntime.__version__) < FIRST_DEFORM_CONV:
            first = ".".join(map(str, FIRST_DEFORM_CONV))
            raise ValueError(
                f"{path}: expected onnxruntime {first} or later for DeformConv, got "
                f"{onnxruntime.__version__}: update it, or export with deform_conv='gathernd'"
            ) from error
        raise ValueError(f"{path}: expected an ONNX model that onnxruntime can load: {error}") from error
    if used != provider[0]:  # it only warns
        raise ValueError(f"device: expected one that onnxruntime can use, got {device!r}: it uses {used}")
    inputs = {
        node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
        for node in (*session.get_inputs(), *session.get_overridable_initializers())
    }
    names = outputs_to_read(output.name for output in session.get_outputs())
    metadata = session.get_modelmeta().custom_metadata_map
    run_on = "cpu" if match[1] else f"cuda:{number}"
    return inputs, names, metadata, lambda feed: session.run(names, feed), run_on


def _without_unread(path: str) -> str | bytes:
    """Return a file, or its content without outputs that dcnzoo does not read: they would be computed."""
    model = _model_class().FromString(Path(path).read_bytes())
    graph = model.graph
    needed = set(outputs_to_read(output.name for output in graph.output))
    if len(needed) == len(graph.output):
        return path
    for i in reversed(range(len(graph.output))):
        if graph.output[i].name not in needed:
            del graph.output[i]
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    used: set[int] = set()
    while needed:  # other tools write nodes in any order
        number = makers.get(needed.pop())
        if number is not None and number not in used:
            used.add(number)
            needed.update(values_read(graph.node[number]))
    for i in sorted(set(makers.values()) - used, reverse=True):
        del graph.node[i]
    return model.SerializeToString()


def _model_class() -> Any:
    """Return the class of ONNX's models: onnxruntime requires protobuf, but not the package of ONNX."""
    from google.protobuf import descriptor_pb2, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="onnx.proto", package="onnx")
    for message, fields in FIELDS.items():
        add = file.message_type.add(name=message).field.add
        for name, number, count, part in fields:
            kind = dict(type=MESSAGE, type_name=f".onnx.{part}") if part else dict(type=TEXT)
            add(name=name, number=number, label=count, **kind)
    return message_factory.GetMessages([file])["onnx.Model"]


def values_read(node: Any) -> Iterator[str]:
    """Yield the names of the values that a node reads, also inside its loops."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from values_read(inner)
