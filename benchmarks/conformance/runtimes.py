"""Run a graph or a module in each runtime."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import describe, listed, versions
from dcnzoo.export import export_pt2
from dcnzoo.export.aotinductor import open_package
from dcnzoo.export.openvino import make_core, save_ir

PACKAGES = {  # that a runtime needs beside those of .venv
    "ncnn": ("ncnn", "pnnx"),
    "ExecuTorch": ("executorch",),
}


VERSIONS = {
    "onnx reference": "onnx",
    "OpenVINO": "openvino",
    "OpenVINO IR": "openvino",
    "AOTInductor": "torch",
}


def environment(runtime: str) -> str:
    """Describe the machine and the versions of a runtime and of its exporter."""
    facts = describe("onnx", "onnxscript", "torchvision")
    of_runtime = versions(VERSIONS.get(runtime, runtime.lower()))
    exporter = {name: facts[name] for name in ("torch", "onnxscript", "torchvision") if name in facts}
    return f"{listed(of_runtime | exporter)}; {facts['cpu']}, {facts['cores']} cores"


def message(problem: Exception) -> str:
    """Return the informative line of an exception, without names of files."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [repr(problem)]
    telling = [line for line in lines if re.search(r"implement|support|rule|expected|[Mm]issing|type", line)]
    return re.sub(r"/\S+/|::\w+", "", (telling or lines)[0])[:200]


def run_reference(path: Path, feed: Sequence[np.ndarray]) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return evaluator.run(None, dict(zip(evaluator.input_names, feed, strict=True)))[0]


def run_onnxruntime(path: Path, feed: Sequence[np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return session.run(None, dict(zip(names, feed, strict=True)))[0]


@functools.cache
def _core(extended: bool):
    import openvino

    return make_core() if extended else openvino.Core()


def run_openvino(path: Path, feed: Sequence[np.ndarray], extended: bool = True) -> np.ndarray:
    core = _core(extended)
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model(list(feed))[0]


def run_ir(path: Path, feed: Sequence[np.ndarray]) -> np.ndarray:
    """Run OpenVINO's own operator: convert the file, and read it without dcnzoo."""
    converted = path.with_suffix(".xml")
    if not converted.exists():
        save_ir(path, converted)
    return run_openvino(converted, feed, extended=False)


ONNX = {
    "onnx reference": run_reference,
    "onnxruntime": run_onnxruntime,
    "OpenVINO": run_openvino,
    "OpenVINO IR": run_ir,
}


def run_pt2(model: nn.Module, args: tuple[Tensor, ...]) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        names = [f"in{i}" for i in range(len(args))]
        export_pt2(model, args, path, input_names=names, output_names=[])
        *_, run = open_package(str(path), "cpu", None)
        return run(dict(zip(names, (tensor.numpy() for tensor in args), strict=True)))


def run_executorch(model: nn.Module, args: tuple[Tensor, ...]) -> np.ndarray:
    from executorch.exir import to_edge
    from executorch.runtime import Runtime

    program = to_edge(torch.export.export(model, args, strict=False)).to_executorch()
    method = Runtime.get().load_program(program.buffer).load_method("forward")
    return method.execute(list(args))[0].numpy()


def run_ncnn(model: nn.Module, args: Sequence[Tensor]) -> np.ndarray:
    """Convert a model of one image by pnnx, and run it."""
    import ncnn
    import pnnx

    with tempfile.TemporaryDirectory() as folder:
        torch.jit.trace(model, tuple(args), check_trace=False).save(f"{folder}/model.pt")
        shapes = ",".join(str(list(tensor.shape)).replace(" ", "") + "f32" for tensor in args)
        command = [pnnx.EXEC_PATH, "model.pt", f"inputshape={shapes}", "fp16=0"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not Path(folder, "model.ncnn.param").exists():
            raise RuntimeError(f"pnnx: {(done.stderr or done.stdout).strip()[-200:]}")
        net = ncnn.Net()
        net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
        net.load_param(f"{folder}/model.ncnn.param")
        net.load_model(f"{folder}/model.ncnn.bin")
        extractor = net.create_extractor()
        inputs = [ncnn.Mat(tensor[0].contiguous().numpy()).clone() for tensor in args]
        for i, value in enumerate(inputs):
            extractor.input(f"in{i}", value)
        status, output = extractor.extract("out0")
        if status:
            raise RuntimeError(f"ncnn: extract returned {status}")
        return np.array(output)[None]
