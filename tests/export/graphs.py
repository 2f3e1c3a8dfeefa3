"""Export modules by torch's two exporters, and run the files."""

import inspect

import onnxruntime
import torch

from dcnzoo.export import export_onnx, register_onnx_ops

DYNAMIC = torch.export.Dim.DYNAMIC
EXPORTERS = ("dynamo", "torchscript")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2}  # relative to the largest value


def export(exporter, model, args, path, opset=19, *, dynamic=(), form="auto"):
    """Write a module to a file. ``dynamic``: the dynamic axes of each argument; the others have none."""
    axes = [*dynamic, *[()] * (len(args) - len(dynamic))]
    if exporter == "dynamo":
        shapes = tuple(dict.fromkeys(each, DYNAMIC) for each in axes)
        kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
        shapes = (shapes,) if inspect.Parameter.VAR_POSITIONAL in kinds else shapes
        shapes = shapes if dynamic else None
        export_onnx(model, args, path, opset_version=opset, deform_conv=form, dynamic_shapes=shapes)
        return
    register_onnx_ops(form)
    names = [f"in{i}" for i in range(len(args))]
    axes = {n: {axis: f"{n}_{axis}" for axis in each} for n, each in zip(names, axes, strict=True) if each}
    torch.onnx.export(
        model, args, path, dynamo=False, opset_version=opset, input_names=names, dynamic_axes=axes or None
    )


def run(path, *args):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {node.name: arg.numpy() for node, arg in zip(session.get_inputs(), args, strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, feed)]


def assert_close(actual, expected, dtype=torch.float32):
    assert actual.shape == expected.shape and actual.dtype == dtype
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= TOLERANCES[dtype] * max(1.0, expected.abs().max().item())
