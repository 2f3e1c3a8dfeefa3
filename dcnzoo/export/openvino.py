"""OpenVINO: convert ONNX's ``DeformConv``, which its ONNX reader does not support, to its own operator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcnzoo.export.smaller import Feed, to_int8_openvino

if TYPE_CHECKING:
    from openvino import Core, Model, Output
    from openvino.frontend import NodeContext


def make_core() -> Core:
    """Return an OpenVINO ``Core`` whose ``read_model`` accepts ONNX files with ``DeformConv``.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
    """
    import openvino
    from openvino.frontend.onnx import ConversionExtension

    core = openvino.Core()
    core.add_extension(ConversionExtension("DeformConv", _deform_conv))
    return core


def save_ir(path: str | os.PathLike, out: Path, float16: bool = False, samples: Sequence[Feed] = ()) -> None:
    """Convert an ONNX file to OpenVINO's IR: ``out``, which ends in ``.xml``, and its weights in ``.bin``.

    OpenVINO reads the IR without dcnzoo. It contains the metadata of the ONNX file.

    Args:
        float16: store the weights in float16.
        samples: inputs; if given, quantise to int8 by :func:`dcnzoo.export.smaller.to_int8_openvino`.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed, or nncf for int8.
    """
    import openvino
    from openvino.passes import ConstantFolding, Manager

    model = make_core().read_model(path)
    # The ONNX reader computes the shapes of biases in the graph. If that is not folded, OpenVINO 2026.4.1
    # computes some int8 convolutions of models with dynamic sizes wrongly.
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    if samples:
        framework = model.get_rt_info("framework") if model.has_rt_info("framework") else None
        model = to_int8_openvino(model, samples)
        if framework is not None:
            model.set_rt_info(framework, "framework")
    openvino.save_model(model, out, compress_to_fp16=float16)


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
