"""Check an ONNX file for what is known to go wrong in a runtime: ``dcnzoo export --check FILE``.

``RULES`` is the table: each rule cites the report, change or page that it comes from. Requires onnx.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dcnzoo.detect.backends.onnxruntime import FIRST_DEFORM_CONV, release
from dcnzoo.export.runtimes import RUNTIMES
from dcnzoo.utils.files import require_file
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import counted, few

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

STANDARD = ("", "ai.onnx", "ai.onnx.ml")
MOST_OF_TENSORRT = 3840  # values of its TopK
DOUBLE = 11  # onnx.TensorProto.DataType
SIZES = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Tile": (1,),
}
# operators of com.microsoft that OpenVINO 2026.4 reads
READ_BY_OPENVINO = (
    *("BiasAdd", "BiasGelu", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul"),
    *("Gelu", "QuickGelu", "SkipLayerNormalization"),
)


class Node:
    """A node with the types and ranks of its inputs and outputs; 0 and -1 if unknown."""

    def __init__(
        self,
        proto: NodeProto,
        opsets: dict[str, int],
        values: dict[str, tuple[int, int]],
        constants: dict[str, TensorProto],
        sizes: set[str],
    ) -> None:
        self._constants = constants
        self.gives_size = not sizes.isdisjoint(proto.output)  # whether a size is computed from its output
        self.operator, self.domain, self._proto = proto.op_type, proto.domain, proto
        self.opset = opsets.get(proto.domain, 0)
        known = [values.get(name, (0, -1)) for name in (*proto.input, *proto.output)]
        self.types, self.ranks = [kind for kind, _ in known], [rank for _, rank in known]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        from onnx.helper import get_attribute_value

        return {each.name: get_attribute_value(each) for each in self._proto.attribute}

    @property
    def is_unknown(self) -> bool:
        """Whether the node has a standard domain, whose opset has no such operator."""
        from onnx import defs

        if self.domain not in STANDARD:
            return False
        try:
            return defs.get_schema(self.operator, self.opset, self.domain.removesuffix("ai.onnx")).deprecated
        except defs.SchemaError:
            return True

    @property
    def number_of_results(self) -> int:
        """How many values a ``TopK`` returns; 0 if the number is computed."""
        from onnx.numpy_helper import to_array

        constant = self._constants.get(self._proto.input[1])
        return 0 if constant is None else int(to_array(constant).max())

    @property
    def is_linear(self) -> bool:
        """Whether a ``GridSample`` has opset 20's name of the bilinear mode, which is also its default."""
        return self.opset >= 20 and self.attributes.get("mode", b"linear") in (b"linear", b"cubic")


def _older(package: str, first: tuple[int, ...]) -> bool:
    """Whether an older release of a package than ``first`` is installed."""
    return find_spec(package) is not None and release(version(package)) < first


@dataclass(frozen=True)
class Rule:
    """What goes wrong with a node, or with any node if ``operator`` is None."""

    runtimes: tuple[str, ...]
    operator: str | None
    applies: Callable[[Node], bool]
    problem: str
    source: str


GITHUB = "https://github.com/"
TABLE = "docs/benchmarks/runtimes.md"
PRIVATE = (
    "the operator is not a standard one: only a plugin or extension runs it; of a file of mmdeploy, export "
    "the detector anew by dcnzoo export"
)
RULES = (
    Rule(tuple(RUNTIMES), None, lambda node: node.is_unknown,
         "the opset has no such operator", "https://onnx.ai/onnx/operators/"),
    Rule(("tensorrt",), "GridSample", lambda node: node.is_linear,
         "the parser runs the mode 'linear' of opset 20 as 'nearest', without an error; use "
         "deform_conv='gathernd' or opset 19", f"{GITHUB}onnx/onnx-tensorrt/pull/1060"),
    Rule(("tensorrt",), "GridSample", lambda node: True,
         "engines of TensorRT 10.14 and 11.1 are reported to give wrong results; use deform_conv='gathernd'",
         f"{GITHUB}NVIDIA/TensorRT/issues/4813"),
    Rule(("tensorrt",), "DeformConv", lambda node: True,
         "supported from TensorRT 10.1 on; for older ones, use deform_conv='gathernd'",
         f"{GITHUB}onnx/onnx-tensorrt/pull/975"),
    Rule(("tensorrt",), "ScatterND", lambda node: "reduction" in node.attributes,
         "the parsers 10.1 to 10.8 refuse the attribute reduction, whatever its value",
         f"{GITHUB}onnx/onnx-tensorrt/blob/10.8-GA/onnxOpImporters.cpp"),
    Rule(("tensorrt",), "ScatterND", lambda node: node.gives_size,
         "a size is computed from its output, which the builder refuses; export with a fixed shape",
         "https://forums.developer.nvidia.com/t/iscatterlayer-cannot-be-used-to-compute-a-shape-tensor/232898"),
    Rule(("mnn",), "DeformConv", lambda node: True,
         "not supported; use deform_conv='gathernd'", TABLE),
    Rule(("mnn",), "IsNaN", lambda node: True, "not supported; write x != x", TABLE),
    Rule(("tract",), "RoiAlign", lambda node: True, "not supported", TABLE),
    Rule(("tensorrt",), "TopK", lambda node: node.number_of_results > MOST_OF_TENSORRT,
         f"{counted(MOST_OF_TENSORRT, 'values')} at most; lower nms_pre, or set deploy_nms_pre in test_cfg",
         "https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/TopK.html"),
    Rule(("tensorrt",), None, lambda node: node.domain in STANDARD and node.opset > 25,
         "TensorRT 11 supports opset 9 to 25; use opset_version=19",
         "https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html"),
    Rule(("openvino",), "DeformConv", lambda node: True,
         "its ONNX reader has no DeformConv; read the file through dcnzoo, export to .xml, or use "
         "deform_conv='gathernd'", f"{GITHUB}openvinotoolkit/openvino/issues/24635"),
    Rule(("openvino",), "GridSample", lambda node: node.opset >= 20,
         "releases before 2026 have no GridSample of opset 20; use opset 19 or deform_conv='gathernd'",
         f"{GITHUB}openvinotoolkit/openvino/issues/37770"),
    Rule(("openvino",), "GridSample", lambda node: 5 in node.ranks,
         "only maps of 2 axes are supported", f"{GITHUB}openvinotoolkit/openvino/issues/37770"),
    Rule(("onnxruntime",), "DeformConv", lambda node: _older("onnxruntime", FIRST_DEFORM_CONV),
         "releases before 1.25 have no DeformConv; update it, or use deform_conv='gathernd'",
         f"{GITHUB}microsoft/onnxruntime/issues/20810"),
    Rule(("onnxruntime",), "RoiAlign", lambda node: node.opset >= 22,
         "the CPU kernel is of opset 16, and not used from 22 on; use opset_version=19",
         f"{GITHUB}microsoft/onnxruntime/issues/27731"),
    Rule(("onnxruntime",), "RoiAlign", lambda node: node.attributes.get("mode") == b"max",
         "'max' takes the maximum of weighted neighbours, other runtimes that of interpolated samples",
         f"{GITHUB}microsoft/onnxruntime/issues/6146"),
    Rule(("onnxruntime",), "GridSample",
         lambda node: node.opset < 20 and DOUBLE in node.types,
         "float64 is supported from opset 20 on; use deform_conv='gathernd'",
         f"{GITHUB}microsoft/onnxruntime/issues/20191"),
    Rule(("coreml",), "Gather", lambda node: 0 in node.ranks[1:2],
         "a scalar index is not supported: the node runs on the CPU",
         f"{GITHUB}microsoft/onnxruntime/issues/28180"),
    Rule(("coreml",), None, lambda node: max(node.ranks, default=0) > 5,
         "Core ML supports tensors of at most 5 axes", f"{GITHUB}apple/coremltools/issues/1723"),
    Rule(("openvino",), None,
         lambda node: node.domain not in STANDARD
         and not (node.domain == "com.microsoft" and node.operator in READ_BY_OPENVINO),
         PRIVATE, f"{GITHUB}openvinotoolkit/openvino/issues/24635"),
    Rule(("onnxruntime", "coreml"), None, lambda node: node.domain not in (*STANDARD, "com.microsoft"),
         PRIVATE, f"{GITHUB}open-mmlab/mmdeploy/issues/139"),
    Rule(("tensorrt", "mnn", "litert", "tract"), None, lambda node: node.domain not in STANDARD,
         PRIVATE, TABLE),
)  # fmt: skip


def check(path: str | os.PathLike, *runtimes: str) -> list[Finding]:
    """Return the problems of an ONNX file that are known in these runtimes (default: all).

    The runtime is their subject, the report or page from which the rule comes their source.

    Raises:
        ValueError: it is not an ONNX file, or a runtime is unknown.
    """
    import onnx
    from onnx.inliner import inline_local_functions

    require_file(os.fspath(path), "check: path")
    for runtime in set(runtimes) - RUNTIMES.keys():
        raise ValueError(f"check: runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}")
    try:
        model = onnx.shape_inference.infer_shapes(inline_local_functions(onnx.load(path)))
    except FileNotFoundError:
        raise
    except Exception as error:  # protobuf's errors have no common base class
        raise ValueError(f"{path}: expected an ONNX file: {error}") from error
    nodes = list(_nodes(model, model.graph))
    findings = []
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input if not runtimes or "tensorrt" in runtimes else ():
        if value.name in stored:
            text = (
                f"the parser drops the input {value.name}, which has a default: pictures must not be padded; "
            )
            source = f"{GITHUB}onnx/onnx-tensorrt"
            findings.append(Finding("tensorrt", f"{text}use img_shape='required'", source=source))
    for rule in RULES:
        affected = [node for node in nodes if rule.operator in (None, node.operator) and rule.applies(node)]
        names = few(sorted({node.operator for node in affected}), 3)
        for runtime in rule.runtimes if affected else ():
            if not runtimes or runtime in runtimes:
                text = f"{len(affected)} × {names}: {rule.problem}"
                findings.append(Finding(runtime, text, source=rule.source))
    return findings


def _nodes(model: ModelProto, graph: GraphProto) -> Iterator[Node]:
    """Yield the nodes of a graph, also those inside its loops."""
    opsets = {each.domain: each.version for each in model.opset_import}
    values = {tensor.name: (tensor.data_type, len(tensor.dims)) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            values[value.name] = tensor.elem_type, len(tensor.shape.dim)
    constants, sizes = {tensor.name: tensor for tensor in graph.initializer}, _sizes(graph)
    for proto in graph.node:
        if proto.op_type == "Constant" and proto.attribute and proto.attribute[0].HasField("t"):
            constants[proto.output[0]] = proto.attribute[0].t
        yield Node(proto, opsets, values, constants, sizes)
        for attribute in proto.attribute:
            if attribute.HasField("g"):
                yield from _nodes(model, attribute.g)


def _sizes(graph: GraphProto) -> set[str]:
    """Return the values from which sizes of others are computed, but not those whose own size is used."""
    makers = {name: node for node in graph.node for name in node.output}
    waiting = [
        node.input[i] for node in graph.node for i in SIZES.get(node.op_type, ()) if i < len(node.input)
    ]
    values: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in values:
            values.add(name)
            if name in makers and makers[name].op_type not in ("Shape", "Size"):
                waiting += makers[name].input
    return values
