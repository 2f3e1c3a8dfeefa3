"""ONNX files and IRs in OpenVINO, whose ONNX reader does not support ``DeformConv``: it is converted here."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from dcnzoo.detect.backends import IMG_SHAPE, Opened

if TYPE_CHECKING:
    from openvino import Core, Model, Output
    from openvino.frontend import NodeContext
    from openvino.frontend.onnx import ConversionExtension

# OpenVINO's default on CPUs that multiply bfloat16 is bf16. Other CPUs compute in float32 with either hint.
HINTS = {"float32": "f32", "bf16": "bf16"}


def open_file(path: str, device: str, threads: int | None, precision: str) -> Opened:
    if device not in ("cpu", "auto"):
        raise ValueError(f"device: expected cpu for openvino, got {device!r}")
    core = make_core()
    try:
        model = core.read_model(path)
        _restore_sizes(model)
        metadata = texts(model)
        settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": threads or 0}
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise ValueError(
            f"{path}: expected an ONNX model or an IR that OpenVINO can read: {error}"
        ) from error
    inputs = {
        node.get_any_name(): tuple(d.get_length() if d.is_static else None for d in node.get_partial_shape())
        for node in compiled.inputs
    }
    names = [output.get_any_name() for output in compiled.outputs]
    requests = threading.local()  # a request must not run in two threads

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        return [np.array(value) for value in requests.own.infer(feed).values()]

    return Opened(inputs, names, metadata, run, "cpu")


def make_core() -> Core:
    """Return the process's OpenVINO ``Core``, whose ``read_model`` accepts ONNX files with ``DeformConv``.

    The core is never deleted. OpenVINO's CPU plugin sets the stack on which signal handlers run. After two
    cores are deleted in the order of their creation, that stack is freed memory, and the next signal with a
    handler, such as SIGCHLD from a data loader worker of torch, ends the process.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
    """
    import openvino

    with _LOCK:
        if not _cores:
            _cores.append(openvino.Core())
            _cores[0].add_extension(extension())
        return _cores[0]


_LOCK = threading.Lock()
_cores: list[Core] = []


def _restore_sizes(model: Model) -> None:
    """Make ``img_shape`` an input again: OpenVINO treats an ONNX input with a default value as a constant.

    The node is found by its name and exchanged by public methods of ``Model``. A ``.xml`` file has the input.
    """
    from openvino import PartialShape
    from openvino import opset12 as ops

    for node in model.get_ops():
        if node.get_friendly_name() == IMG_SHAPE and node.get_type_name() == "Constant":
            rows = -1 if model.input(0).partial_shape[0].is_dynamic else node.shape[0]
            parameter = ops.parameter(PartialShape([rows, 2]), np.int64, name=IMG_SHAPE)
            parameter.output(0).set_names({IMG_SHAPE})
            for user in list(node.output(0).get_target_inputs()):
                user.replace_source_output(parameter.output(0))
            model.add_parameters([parameter])
            model.validate_nodes_and_infer_types()
            return


def extension() -> ConversionExtension:
    from openvino.frontend.onnx import ConversionExtension

    return ConversionExtension("DeformConv", _deform_conv)


def texts(model: Model) -> dict[str, str]:
    """Return the ONNX metadata of a model that OpenVINO has read, from ONNX or IR."""
    if not model.has_rt_info("framework"):
        return {}
    entries = model.get_rt_info("framework").value
    return {key: str(getattr(value, "value", value)) for key, value in entries.items()}


def _deform_conv(node: NodeContext) -> list[Output]:
    """Convert a DeformConv node. Its inputs are input, weight, offset, bias (optional), mask (optional)."""
    from openvino import opset12 as ops

    data, weight, offset = (node.get_input(i) for i in range(3))
    bias, mask = (_optional(node, i) for i in (3, 4))
    rank = len(weight.get_partial_shape()) - 2
    pads = node.get_attribute("pads", [0] * 2 * rank)
    result = ops.deformable_convolution(
        data=data,
        offsets=offset,
        filters=weight,
        strides=node.get_attribute("strides", [1] * rank),
        pads_begin=pads[:rank],
        pads_end=pads[rank:],
        dilations=node.get_attribute("dilations", [1] * rank),
        mask=mask,
        group=node.get_attribute("group", 1),
        deformable_group=node.get_attribute("offset_group", 1),
        bilinear_interpolation_pad=True,  # interpolates at the border, as in DCN
    )
    if bias is not None:
        axes = ops.constant(np.array([0, *range(2, 2 + rank)]))
        result = ops.add(result, ops.unsqueeze(bias, axes))
    return result.outputs()


def _optional(node: NodeContext, number: int) -> Output | None:
    """Return an optional input of a node; None if it is omitted."""
    value = node.get_input(number) if number < node.get_input_size() else None
    return None if value is None or value.get_node().get_type_name() == "NullNode" else value
