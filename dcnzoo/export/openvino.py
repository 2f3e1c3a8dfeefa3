"""OpenVINO: convert ONNX's ``DeformConv``, which its ONNX reader does not support, to its own operator."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from dcnzoo.utils.files import replacing

if TYPE_CHECKING:
    from openvino import Core, Model, Output
    from openvino.frontend import NodeContext
    from openvino.frontend.onnx import ConversionExtension


def make_core() -> Core:
    """Return an OpenVINO ``Core`` whose ``read_model`` accepts ONNX files with ``DeformConv``.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
    """
    import openvino

    core = openvino.Core()
    core.add_extension(_extension())
    return core


def save_ir(path: str | os.PathLike, out: Path, float16: bool = False) -> None:
    """Convert an ONNX file to OpenVINO's IR: ``out``, which ends in ``.xml``, and its weights in ``.bin``.
    Both files are written at the end.

    OpenVINO reads the IR without dcnzoo. It contains the metadata of the ONNX file. If the network of the
    file is quantised to int8, so is that of the IR.

    Args:
        float16: store the weights in float16.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
    """
    import openvino

    # convert_model, not Core.read_model, also folds the shapes of biases, which the ONNX reader computes in
    # the graph, but not the weights in int8
    model = openvino.convert_model(path, extension=_extension())
    with (
        replacing(out) as partial,
        replacing(out.with_suffix(".bin")) as partial_weights,  # the first to be in place
        TemporaryDirectory(dir=out.parent) as folder,
    ):
        whole = Path(folder) / "model.xml"  # OpenVINO requires this suffix
        openvino.save_model(model, whole, compress_to_fp16=float16)
        whole.with_suffix(".bin").replace(partial_weights)
        whole.replace(partial)


def _extension() -> ConversionExtension:
    from openvino.frontend.onnx import ConversionExtension

    return ConversionExtension("DeformConv", _deform_conv)


def texts(model: Model) -> dict[str, str]:
    """Return the ONNX metadata of a model that OpenVINO has read, from ONNX or IR."""
    if not model.has_rt_info("framework"):
        return {}
    found = model.get_rt_info("framework").value
    return {key: str(getattr(value, "value", value)) for key, value in found.items()}


def _deform_conv(node: NodeContext) -> list[Output]:
    """Convert a DeformConv node. Its inputs are input, weight, offset, bias (optional), mask (optional)."""
    from openvino import opset12 as ops

    inputs = [_given(node.get_input(i)) for i in range(node.get_input_size())]
    data, weight, offset, bias, mask = inputs + [None] * (5 - len(inputs))
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


def _given(value: Output) -> Output | None:
    """Return an input of a node; None for an omitted optional input."""
    return None if value.get_node().get_type_name() == "NullNode" else value
