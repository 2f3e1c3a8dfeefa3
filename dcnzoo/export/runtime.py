"""Run exported detectors. Requires numpy and a runtime, but not torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dcnzoo.export.detector import BaseDetector
from dcnzoo.export.picture import Detections, Preprocessing, rescale_detections


class Detector(BaseDetector):
    """An exported detector for pictures: :func:`dcnzoo.load` without torch::

        from dcnzoo.export import Detector
        detector = Detector("model.onnx")
        result = detector("picture.jpg")  # result.boxes, result.scores, result.labels, result.masks

    Requires numpy, the runtime and, to read files, OpenCV or Pillow. The file contains the image size,
    normalisation and class names, which ``dcnzoo export`` wrote. See
    :meth:`dcnzoo.export.detector.BaseDetector.__call__` for its calls.

    Args:
        path: the ONNX file; an OpenVINO IR: an ``.xml`` file next to its ``.bin`` file; or a ``.pt2`` file,
            which contains compiled code: open only files that you trust.
        backend, device, threads: see :class:`Session`.
        score_threshold: default of calls.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: the runtime is not installed.
        ValueError: the runtime cannot load the file, or dcnzoo did not write it; or the backend is unknown.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        backend: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        score_threshold: float = 0.3,
    ) -> None:
        self.model = Session(path, backend, device, threads)
        self.device, self.score_threshold = self.model.device, score_threshold
        try:
            self._preprocessing = Preprocessing.from_metadata(self.model.metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        self.model.require_detections()
        self.classes = self._preprocessing.classes

    def prepare(self, picture: np.ndarray, path: str = "") -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
        """Return the input, [1, 3, h, w], its height and width without padding, and the picture."""
        return *self._preprocessing(picture, self.model.shape[2:]), picture

    def _detect(
        self, inputs: Sequence[tuple[np.ndarray, tuple[int, int], np.ndarray]], threshold: float
    ) -> list[Detections]:
        images, sizes, pictures = zip(*inputs, strict=True)
        borders = [self._preprocessing.padded(size, self.model.shape[2:]) for size in sizes]
        outputs = self.model(_stack(images), np.array(borders))
        results = []
        for i, (picture, size, border) in enumerate(zip(pictures, sizes, borders, strict=True)):
            kept = outputs["dets"][i, :, 4] >= threshold
            values = {name: value[i][kept] for name, value in outputs.items()}
            results.append(rescale_detections(values, size, picture.shape[:2], self.model.metadata, border))
        return results


def _stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Copy images ``[1, 3, h, w]`` into the upper left corners of one zero-padded batch."""
    height, width = (max(image.shape[axis] for image in images) for axis in (2, 3))
    whole = np.zeros((len(images), 3, height, width), np.float32)
    for place, image in zip(whole, images, strict=True):
        place[:, : image.shape[2], : image.shape[3]] = image[0]
    return whole


class Session:
    """An exported file in a runtime: ``session(images)`` returns the outputs by name.

    Args:
        path: see :class:`Detector`.
        backend: ``"onnxruntime"``, ``"openvino"`` or ``"aotinductor"``, which requires torch; None: the one
            for the file's ending.
        device: ``"cpu"``, ``"cuda"``, which requires onnxruntime-gpu, or ``"auto"``.
        threads: maximum number of CPU threads; None: the runtime's default. For AOTInductor, it applies to
            the whole process.

    Attributes:
        metadata: the file's metadata.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: the runtime is not installed.
        ValueError: the runtime cannot load the file; or the device or backend is not available.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        backend: str | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        backend = backend or ENDINGS.get(Path(path).suffix, "onnxruntime")
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        if backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        if not Path(path).is_file():
            raise FileNotFoundError(2, "No such file", str(path))
        self.path = str(path)
        self.device = _best_device(backend) if device == "auto" else device
        try:
            opened = BACKENDS[backend](self.path, self.device, threads)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"backend: expected {backend} to be installed (pip install {backend}), but {error}"
            ) from error
        self.inputs, self.output_names, self.metadata, self._run = opened
        self.shape = next(iter(self.inputs.values()))

    def require_detections(self) -> None:
        """Raise ValueError if the outputs are a head's raw outputs."""
        if not {"dets", "labels"} <= set(self.output_names):
            names = ", ".join(self.output_names)
            hint = "exported with --skip-postprocess?"
            raise ValueError(f"{self.path}: expected outputs dets and labels, got {names}: {hint}")

    def __call__(
        self,
        images: np.ndarray,  # [N, 3, H, W], float32
        sizes: np.ndarray | None = None,  # [N, 2], (height, width)
    ) -> dict[str, np.ndarray]:
        """Run the model, in batches and with padding if the graph has a fixed size.

        Args:
            sizes: of each image without padding, for graphs with such an input (DETR); otherwise ignored.

        Raises:
            ValueError: the images do not fit the graph's size.
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
# inputs, names of the outputs, metadata, and a function that runs the model
_Opened = tuple[
    dict[str, _Shape], list[str], dict[str, str], Callable[[dict[str, np.ndarray]], list[np.ndarray]]
]

FIRST_DEFORM_CONV = (1, 25)  # the first release of onnxruntime with DeformConv


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, to compare it."""
    return tuple(int(part) for part in version.split(".")[:2])


def _onnxruntime(path: str, device: str, threads: int | None) -> _Opened:
    import onnxruntime

    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.split(":")[0])
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise ValueError(f"device: expected one of {', '.join(available)}, got {device!r}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[wanted])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        if "DeformConv" in str(error) and (found := release(onnxruntime.__version__)) < FIRST_DEFORM_CONV:
            wanted, found = (".".join(map(str, each)) for each in (FIRST_DEFORM_CONV, found))
            raise ValueError(
                f"{path}: expected onnxruntime {wanted} or later for DeformConv, got {found}: update it, or "
                "export with --deform-conv gathernd"
            ) from error
        raise ValueError(f"{path}: expected an ONNX model that onnxruntime can load: {error}") from error
    inputs = {
        node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
        for node in session.get_inputs()
    }
    names = [output.name for output in session.get_outputs()]
    metadata = session.get_modelmeta().custom_metadata_map
    return inputs, names, metadata, lambda feed: session.run(None, feed)


def _openvino(path: str, device: str, threads: int | None) -> _Opened:
    from dcnzoo.export.openvino import make_core, texts

    if device != "cpu":
        raise ValueError(f"device: expected cpu for openvino, got {device!r}")
    core = make_core()
    try:
        model = core.read_model(path)
        metadata = texts(model)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0}
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise ValueError(
            f"{path}: expected an ONNX model or an IR that OpenVINO can read: {error}"
        ) from error
    inputs = {
        node.get_any_name(): tuple(d.get_length() if d.is_static else None for d in node.get_partial_shape())
        for node in compiled.inputs
    }
    names = [output.get_any_name() for output in compiled.outputs]
    return inputs, names, metadata, lambda feed: [np.array(value) for value in compiled(feed).values()]


def _aotinductor(path: str, device: str, threads: int | None) -> _Opened:
    from dcnzoo.export.aotinductor import open_package

    return open_package(path, device, threads)


BACKENDS = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "aotinductor": _aotinductor,
}
ENDINGS = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "aotinductor"}


def _best_device(backend: str) -> str:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return "cpu"
    has_gpu = backend == "onnxruntime" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return "cuda" if has_gpu else "cpu"
