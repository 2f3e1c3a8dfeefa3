"""Run a graph or a module in each runtime."""

import re
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks.measure import describe, listed
from dcnzoo.export import save_ir

PACKAGES = {  # whose versions decide the result
    "onnx reference": ("onnx", "torch", "onnxscript"),
    "onnxruntime": ("onnxruntime", "torch", "onnxscript"),
    "OpenVINO": ("openvino", "torch", "onnxscript"),
    "OpenVINO IR": ("openvino", "torch", "onnxscript"),
}


def environment(runtime: str) -> str:
    """Describe the machine and the versions of a runtime and of its exporter."""
    facts = describe(*PACKAGES[runtime])
    installed = listed({name: facts[name] for name in PACKAGES[runtime]})
    return f"{installed}; {facts['cpu']}, {facts['cores']} cores"


def message(problem: BaseException) -> str:
    """Return the informative line of an exception, without names of files."""
    problem = problem.__cause__ or problem
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()] or [repr(problem)]
    telling = [line for line in lines if re.search(r"implement|support|rule|expected|[Mm]issing|type", line)]
    return re.sub(r"/\S+/|::\w+", "", (telling or lines)[0])[:200]


def run_reference(path: Path, feed: Sequence[np.ndarray]) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return evaluator.run(None, dict(zip(evaluator.input_names, feed, strict=True)))


def run_file(backend: str, path: Path, feed: Sequence[np.ndarray]) -> list[np.ndarray]:
    runtime = import_module(f"dcnzoo.detect.backends.{backend}")
    opened = runtime.open_file(str(path), "cpu", None, "float32")
    return opened.run(dict(zip(opened.inputs, feed, strict=True)))


def run_ir(path: Path, feed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Convert the file to OpenVINO's own operator, and run it."""
    converted = path.with_suffix(".xml")
    if not converted.exists():
        save_ir(path, converted)
    return run_file("openvino", converted, feed)


ONNX = {
    "onnx reference": run_reference,
    "onnxruntime": partial(run_file, "onnxruntime"),
    "OpenVINO": partial(run_file, "openvino"),
    "OpenVINO IR": run_ir,
}
