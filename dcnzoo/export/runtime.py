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
        self.inputs, self.output_names, self._run = opened(self.path, device)
        self.shape = next(iter(self.inputs.values()))

    def __call__(
        self,
        images: np.ndarray,  # [N, 3, H, W], float32
        sizes: np.ndarray | None = None,  # [N, 2], (height, width)
    ) -> dict[str, np.ndarray]:
        """Runs the model, in pieces and with padding where the graph has a fixed size.

        Args:
            sizes: of each image without padding, for the graphs that ask (DETR); else not looked at.

        Raises:
            ValueError: the images do not fit into the graph's size.
        """
        batch, _, height, width = self.shape
        given = images.shape
        room = [0, 0]
        fits = images.ndim == 4 and given[1] == 3
        if fits:
            room = [(limit or size) - size for limit, size in zip((height, width), given[2:], strict=True)]
        if not fits or min(room) < 0:
            expected = ", ".join("any" if size is None else str(size) for size in self.shape)
            raise ValueError(f"{self.path}: input: expected shape ({expected}) or smaller, got {given}")
        if sizes is None:
            sizes = np.tile(np.array(given[2:], np.int64), (len(images), 1))
        step = batch or len(images)
        parts = []
        for start in range(0, len(images), step):
            part, part_sizes = images[start : start + step], sizes[start : start + step]
            missing = step - len(part)
            values = (
                np.pad(part, [(0, missing), (0, 0), *((0, size) for size in room)]),
                np.pad(part_sizes.astype(np.int64), [(0, missing), (0, 0)], mode="edge"),
            )
            outputs = self._run(dict(zip(self.inputs, values, strict=False)))
            parts.append([output[: len(part)] for output in outputs])
        whole = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        return dict(zip(self.output_names, whole, strict=True))


_Shape = tuple[int | None, ...]  # None: any size
_Opened = tuple[dict[str, _Shape], list[str], Callable[[dict[str, np.ndarray]], list[np.ndarray]]]


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
    inputs = {
        node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
        for node in session.get_inputs()
    }
    names = [output.name for output in session.get_outputs()]
    return inputs, names, lambda feed: session.run(None, feed)


def _openvino(path: str, device: str) -> _Opened:
    import openvino

    if device != "cpu":
        raise ValueError(f"device: expected cpu for openvino, got {device!r}")
    try:
        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except Exception as error:
        raise ValueError(f"{path}: expected an ONNX model that OpenVINO reads: {error}") from error
    inputs = {
        node.get_any_name(): tuple(d.get_length() if d.is_static else None for d in node.get_partial_shape())
        for node in model.inputs
    }
    names = [output.get_any_name() for output in model.outputs]
    return inputs, names, lambda feed: [np.array(value) for value in model(feed).values()]
