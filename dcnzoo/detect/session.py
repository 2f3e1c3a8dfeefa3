"""An exported file in a runtime. Requires numpy and the runtime, but not torch."""

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np

from dcnzoo.detect.backends import MASK_LOGITS
from dcnzoo.detect.preprocessing import KEY
from dcnzoo.utils.files import require_file
from dcnzoo.utils.formats import BACKENDS


class Session:
    """An exported file in a runtime: ``session(images)`` returns the outputs by name.

    Args:
        path: see :class:`dcnzoo.export.Detector`.
        backend: ``"onnxruntime"`` or ``"openvino"``; None: the one for the file's ending.
        device: ``"cpu"``; ``"cuda"`` or ``"cuda:1"``, which require onnxruntime-gpu; or ``"auto"``.
        threads: maximum number of CPU threads; None: the runtime's default.
        precision: ``"bf16"``, with OpenVINO only, computes in bfloat16 on CPUs that multiply it, except for
            deformable convolutions. This is faster, and changes scores and boxes a little.

    Attributes:
        metadata: the file's metadata.
        device: the one that runs the model, ``"cpu"`` or ``"cuda:0"``.

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
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        if backend is None:
            backend = BACKENDS.get(Path(path).suffix, "onnxruntime")
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        if backend not in BACKENDS.values():
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS.values())}, got {backend!r}")
        if precision not in (("float32", "bf16") if backend == "openvino" else ("float32",)):
            raise ValueError(f"precision: expected float32, or bf16 with openvino, got {precision!r}")
        path = os.path.expanduser(path)
        for file in (path, os.path.splitext(path)[0] + ".bin")[: 2 if path.endswith(".xml") else 1]:
            require_file(file, "model")
        self.path, self.backend, self.precision = path, backend, precision
        try:
            runtime = import_module(f"dcnzoo.detect.backends.{backend}")
            opened = runtime.open_file(self.path, str(device), threads, precision)  # also of a torch.device
        except ModuleNotFoundError as error:
            raise ImportError(
                f"backend: expected {backend} to be installed (pip install {backend}), but {error}"
            ) from error
        self.inputs, self.output_names, self.metadata = opened.inputs, opened.output_names, opened.metadata
        self._run, self.device = opened.run, opened.device
        self.shape = next(iter(self.inputs.values()))
        self._arguments = os.path.abspath(path), backend, self.device, threads, precision

    def __reduce__(self) -> tuple:
        return Session, self._arguments  # another process opens the file again

    def require_detections(self) -> None:
        """Raise ValueError if the file returns a head's raw outputs in place of detections."""
        if not {"dets", "labels"} <= set(self.output_names):
            names = ", ".join(self.output_names)
            hint = "exported with raw_outputs?"
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
        room = [(most or size) - size for most, size in zip(self.shape[2:], images.shape[2:], strict=False)]
        if images.ndim != 4 or images.shape[1] != 3 or min(room) < 0:
            expected = ", ".join("any" if size is None else str(size) for size in self.shape)
            raise ValueError(
                f"{self.path}: input: expected shape ({expected}) or smaller, got {images.shape}"
            )
        if sizes is None:
            sizes = np.tile(np.array(images.shape[2:], np.int64), (len(images), 1))
        elif len(self.inputs) == 1 and (sizes < images.shape[2:]).any():
            warnings.warn(
                f"{self.path}: a padded picture, but no input img_shape: boxes may reach into the padding",
                stacklevel=2,
            )
        if any(room):
            images = self.stack(images[:, None])
        step = self.shape[0] or len(images)
        parts = [
            self._run_batch(images[start : start + step], sizes[start : start + step], step)
            for start in range(0, len(images), step)
        ]
        results = parts[0]
        if len(parts) > 1:
            results = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        outputs = dict(zip(self.output_names, results, strict=True))
        if MASK_LOGITS in outputs:  # the mask logits cover the input with its padding
            outputs["input_size"] = np.tile(np.array(images.shape[2:]), (len(images), 1))
        return outputs

    def stack(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Copy images ``[1, 3, h, w]`` into one batch, padded to a fixed size of the graph: :func:`stack`."""
        return stack([*images], self.shape[2:], self._pad_value)

    @cached_property
    def _pad_value(self) -> float:
        return json.loads(self.metadata.get(KEY, "{}")).get("pad_value", 0)

    def _run_batch(self, images: np.ndarray, sizes: np.ndarray, number: int) -> list[np.ndarray]:
        """Fill a batch up to ``number`` images with zeros; run it."""
        values, missing = (images, sizes.astype(np.int64)), number - len(images)
        if missing:
            more = [(0, missing), (0, 0), (0, 0), (0, 0)]
            values = np.pad(images, more), np.pad(values[1], more[:2], "edge")
        outputs = self._run(dict(zip(self.inputs, values, strict=False)))
        return [output[: len(images)] for output in outputs]


def stack(
    images: Sequence[np.ndarray], shape: Sequence[int | None] = (None, None), value: float = 0.0
) -> np.ndarray:
    """Copy images ``[1, 3, h, w]`` into the upper left corners of a batch that has at least this shape."""
    height, width = (max(shape[axis] or 0, *(image.shape[2 + axis] for image in images)) for axis in (0, 1))
    batch = np.full((len(images), 3, height, width), value, np.float32)
    for target, image in zip(batch, images, strict=True):
        target[:, : image.shape[2], : image.shape[3]] = image[0]
    return batch
