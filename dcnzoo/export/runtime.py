"""Exported detectors at run time. Needs numpy and the runtime, no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

BACKENDS = ("onnxruntime", "openvino", "tensorrt")


class Session:
    """An ONNX file in a runtime: ``session(images)`` gives the outputs by name.

    Args:
        path: the ONNX file.
        backend: ``"onnxruntime"`` or ``"openvino"``.
        device: ``"cpu"`` or ``"cuda"``, which needs onnxruntime-gpu.

    Raises:
        ImportError: the runtime is not installed.
        ValueError: the file is no model that it can run, or the device or backend is not there.
    """

    def __init__(self, path: str | os.PathLike, backend: str = "onnxruntime", device: str = "cpu") -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(2, "No such file", str(path))
        self.path = str(path)
        opened = {"onnxruntime": _onnxruntime, "openvino": _openvino}.get(backend)
        if opened is None:
            more = (
                "; TensorRT builds its engine with trtexec, see docs/deploy.md"
                if backend == "tensorrt"
                else ""
            )
            raise ValueError(f"backend: expected onnxruntime or openvino, got {backend!r}{more}")
        self.shape, self.output_names, self._run = opened(self.path, device)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:  # [N, 3, H, W], float32
        """Runs the model, in pieces and with padding where the graph has a fixed size.

        Raises:
            ValueError: the images do not fit into the graph's size.
        """
        batch, _, height, width = self.shape
        given = images.shape
        if (
            images.ndim != 4
            or given[1] != 3
            or given[2] > (height or given[2])
            or given[3] > (width or given[3])
        ):
            expected = ", ".join("any" if size is None else str(size) for size in self.shape)
            raise ValueError(f"{self.path}: input: expected shape ({expected}) or smaller, got {given}")
        step = batch or len(images)
        parts = []
        for start in range(0, len(images), step):
            part = images[start : start + step]
            room = (step - len(part), 0, (height or given[2]) - given[2], (width or given[3]) - given[3])
            outputs = self._run(np.pad(part, [(0, size) for size in room]))
            parts.append([output[: len(part)] for output in outputs])
        return {
            name: np.concatenate(p)
            for name, p in zip(self.output_names, zip(*parts, strict=True), strict=True)
        }


_Opened = tuple[tuple[int | None, ...], list[str], Callable[[np.ndarray], list[np.ndarray]]]


def _onnxruntime(path: str, device: str) -> _Opened:
    import onnxruntime

    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.split(":")[0])
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise ValueError(f"device: expected one of {', '.join(available)}, got {device!r}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[wanted])
    except Exception as error:  # its exceptions have no common class of their own
        raise ValueError(f"{path}: expected an ONNX model that onnxruntime loads: {error}") from error
    (node,) = session.get_inputs()
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    names = [output.name for output in session.get_outputs()]
    return shape, names, lambda images: session.run(None, {node.name: images})


def _openvino(path: str, device: str) -> _Opened:
    import openvino

    if device != "cpu":
        raise ValueError(f"device: expected cpu for openvino, got {device!r}")
    try:
        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except Exception as error:
        raise ValueError(f"{path}: expected an ONNX model that OpenVINO reads: {error}") from error
    (node,) = model.inputs
    shape = tuple(d.get_length() if d.is_static else None for d in node.get_partial_shape())
    names = [output.get_any_name() for output in model.outputs]
    return shape, names, lambda images: [np.array(value) for value in model(images).values()]
