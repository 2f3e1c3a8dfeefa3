"""Exported detectors at run time. Needs numpy and the runtime, no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dcnzoo.export.external import refuse_files_elsewhere
from dcnzoo.export.picture import Detections, Preprocessing, on_picture, read


class Detector:
    """An exported detector, from a picture to what is in it::

        from dcnzoo.export import Detector
        detector = Detector("model.onnx")
        found = detector("picture.jpg")  # found.boxes, found.scores, found.labels, found.masks

    Needs numpy, the runtime, and to read files OpenCV or Pillow. All that is to be known of the model
    (sizes, normalisation, names) is in the file, where ``tools/deployment/pytorch2onnx.py`` has put it.

    Args:
        path: the ONNX file, or with OpenVINO also the IR: an ``.xml`` file with its ``.bin`` beside it.
        backend: ``"onnxruntime"``, ``"openvino"`` or ``"tensorrt"``.
        device: ``"cpu"`` or ``"cuda"``, which needs onnxruntime-gpu or TensorRT.

    Attributes:
        classes: the names that labels stand for; empty if they were not known.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the runtime is not installed.
        ValueError: the file is no model that it can run, was not written by dcnzoo, or names files outside
            its folder; no such backend.
    """

    def __init__(self, path: str | os.PathLike, backend: str = "onnxruntime", device: str = "cpu") -> None:
        self._session = Session(path, backend, device)
        try:
            self._preprocessing = Preprocessing.from_metadata(self._session.metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if not {"dets", "labels"} <= set(self._session.output_names):
            raise ValueError(
                f"{path}: expected outputs dets and labels, got {', '.join(self._session.output_names)}: "
                "exported with --skip-postprocess?"
            )
        self.classes = self._preprocessing.classes

    def __call__(
        self,
        image: str | os.PathLike | np.ndarray,  # a file, or [H, W, 3], uint8, in OpenCV's order: BGR
        score_threshold: float = 0.0,
    ) -> Detections:
        """
        Raises:
            FileNotFoundError: no such file.
            ValueError: no picture; too large a one for a model of a fixed size that may not be resized.
        """
        picture = read(image)
        limit = self._session.shape[2:]
        inputs, size = self._preprocessing(picture, limit)
        border = self._preprocessing.padded(size, limit)
        outputs = {name: value[0] for name, value in self._session(inputs, np.array([border])).items()}
        kept = outputs["dets"][:, 4] >= score_threshold
        outputs = {name: value[kept] for name, value in outputs.items()}
        return on_picture(outputs, size, picture.shape[:2], self._session.metadata, border)


class Session:
    """An exported file in a runtime: ``session(images)`` gives the outputs by name.

    Args:
        path: the ONNX file, or with OpenVINO also the IR: an ``.xml`` file with its ``.bin`` beside it.
        backend: ``"onnxruntime"``, ``"openvino"`` or ``"tensorrt"``.
        device: ``"cpu"`` or ``"cuda"``, which needs onnxruntime-gpu or TensorRT.

    Attributes:
        metadata: the texts that the file holds.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the runtime is not installed.
        ValueError: the file is no model that it can run, it names files outside its folder, or the
            device or backend is not there.
    """

    def __init__(self, path: str | os.PathLike, backend: str = "onnxruntime", device: str = "cpu") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        if not Path(path).is_file():
            raise FileNotFoundError(2, "No such file", str(path))
        self.path = str(path)
        if backend != "openvino" or Path(path).suffix != ".xml":
            refuse_files_elsewhere(path)
        try:
            self.inputs, self.output_names, self.metadata, self._run = BACKENDS[backend](self.path, device)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"backend: expected {backend} to be installed (pip install {backend}), but {error}"
            ) from error
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
# inputs, names of the outputs, metadata, and what runs it
_Opened = tuple[
    dict[str, _Shape], list[str], dict[str, str], Callable[[dict[str, np.ndarray]], list[np.ndarray]]
]


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
    metadata = session.get_modelmeta().custom_metadata_map
    return inputs, names, metadata, lambda feed: session.run(None, feed)


def _openvino(path: str, device: str) -> _Opened:
    from dcnzoo.export.openvino import make_core, texts

    if device != "cpu":
        raise ValueError(f"device: expected cpu for openvino, got {device!r}")
    core = make_core()
    try:
        model = core.read_model(path)
        metadata = texts(model)
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except Exception as error:
        raise ValueError(f"{path}: expected an ONNX model or an IR that OpenVINO reads: {error}") from error
    inputs = {
        node.get_any_name(): tuple(d.get_length() if d.is_static else None for d in node.get_partial_shape())
        for node in compiled.inputs
    }
    names = [output.get_any_name() for output in compiled.outputs]
    return inputs, names, metadata, lambda feed: [np.array(value) for value in compiled(feed).values()]


def _tensorrt(path: str, device: str) -> _Opened:
    from dcnzoo.export.tensorrt import open_engine

    return open_engine(path, device)


BACKENDS = {"onnxruntime": _onnxruntime, "openvino": _openvino, "tensorrt": _tensorrt}
