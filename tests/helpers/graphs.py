"""Export modules by torch's exporters, and run the files."""

import inspect
from importlib.util import find_spec

import onnxruntime
import pytest
import torch

from dcnzoo.export import export_onnx, register_onnx_ops
from dcnzoo.utils.torchvision_schemas import load_error

needs_torchvision = pytest.mark.skipif(
    find_spec("torchvision") is None or load_error() is not None,
    reason="needs a torchvision that fits torch, for its operators",
)
DYNAMIC = torch.export.Dim.DYNAMIC
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2}  # relative to the largest value


def export(model, args, path, opset=19, *, dynamic=(), form="auto"):
    """Write a module to a file. ``dynamic``: the dynamic axes of each argument; the others have none."""
    axes = [*dynamic, *[()] * (len(args) - len(dynamic))]
    shapes = tuple(dict.fromkeys(each, DYNAMIC) for each in axes)
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    shapes = (shapes,) if inspect.Parameter.VAR_POSITIONAL in kinds else shapes
    shapes = shapes if dynamic else None
    export_onnx(model, args, path, opset_version=opset, deform_conv=form, dynamic_shapes=shapes)


def export_by_torchscript(model, args, path, opset=19, *, form="auto"):
    """Write a module to a file by ``torch.onnx.export(dynamo=False)``."""
    register_onnx_ops(form)
    torch.onnx.export(model, args, path, dynamo=False, opset_version=opset)


def run(path, *args):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {node.name: arg.numpy() for node, arg in zip(session.get_inputs(), args, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, feed)]


def assert_close(actual, expected, dtype=torch.float32):
    assert actual.shape == expected.shape and actual.dtype == dtype
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= TOLERANCES[dtype] * max(1.0, expected.abs().max().item())
