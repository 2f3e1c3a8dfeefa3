"""Run a graph or a module in each runtime."""

import functools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from benchmarks.measure import describe, listed
from dcnzoo.detect.backends.aotinductor import open_file
from dcnzoo.export import export_pt2
from dcnzoo.export.openvino import make_core, save_ir

PACKAGES = {  # whose versions decide the result
    "onnx reference": ("onnx", "torch", "onnxscript"),
    "onnxruntime": ("onnxruntime", "torch", "onnxscript"),
    "OpenVINO": ("openvino", "torch", "onnxscript"),
    "OpenVINO IR": ("openvino", "torch", "onnxscript"),
    "AOTInductor": ("torch",),
}


def environment(runtime: str) -> str:
    """Describe the machine and the versions of a runtime and of its exporter."""
    facts = describe(*PACKAGES[runtime])
    installed = listed({name: facts[name] for name in PACKAGES[runtime]})
    return f"{installed}; {facts['cpu']}, {facts['cores']} cores"


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
        *_, run = open_file(str(path), "cpu", None)
        return run(dict(zip(names, (tensor.numpy() for tensor in args), strict=True)))
