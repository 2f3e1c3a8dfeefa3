"""The preprocessing of exported files: described from a config's test pipeline, then compared with it."""

import inspect
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmcv import transforms
from mmdet.registry import TRANSFORMS
from mmengine.registry import DefaultScope
from PIL import Image

from dcnzoo.detect.pictures import read
from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.detect.sources import ModelError
from dcnzoo.utils.errors import one_line

DECODED = 2  # grey levels by which decoders of JPEG may differ
ROUNDED = 1e-4  # of the largest value: operations in another order


def preprocessing_of(pipeline: Sequence[Mapping], preprocessor: Any, classes: Sequence[str]) -> Preprocessing:
    """Describe a config's test pipeline and a model's ``data_preprocessor``, and compare both on pictures.

    Raises:
        ValueError: the model's input of the description is another one; the message names the step.
    """
    with DefaultScope.overwrite_default_scope("mmdet"), TemporaryDirectory() as folder:
        for i, content in enumerate(_pictures()):
            path = Path(folder) / f"{i}.jpg"
            path.write_bytes(content)
            _compare(pipeline, preprocessor, path)
        return Preprocessing(tuple(classes), **_described(pipeline, preprocessor))


def _pictures() -> Iterator[bytes]:
    """Generate JPEG files: a grey one, turned by EXIF; a small one; one of odd sizes; a large one."""
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation
    pictures, rng = [Image.new("L", (67, 43), 120)], np.random.default_rng(0)
    for height, width in ((37, 53), (641, 479), (1003, 1499)):
        coarse = rng.integers(0, 256, (-(-height // 3), -(-width // 3), 3), np.uint8)
        pictures.append(Image.fromarray(coarse.repeat(3, 0).repeat(3, 1)[:height, :width]))
    for picture in pictures:
        file, exif = io.BytesIO(), turned if picture.mode == "L" else Image.Exif()
        picture.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
        yield file.getvalue()


def _compare(pipeline: Sequence[Mapping], preprocessor: Any, path: Path) -> None:
    """Compare the description with the pipeline on one picture, after each step. Raises ValueError."""
    picture, data = read(path), {"img_path": str(path), "img_id": 0}
    sample: Any = None
    for i, step in enumerate(pipeline):
        remote = ("backend_args", "file_client_args")  # of a server, on which the picture is not
        name, before = f"test_pipeline: {dict(step)}", _random_states()
        try:
            data = TRANSFORMS.build({key: step[key] for key in step if key not in remote})(data)
            image = data["inputs"].numpy() if "inputs" in data else np.moveaxis(data["img"], -1, 0)
        except Exception as error:  # of any kind: the step may be the user's
            raise ValueError(f"{name}: cannot be stored in a file: {one_line(error)}") from error
        if before != _random_states() and step.get("prob") != 0:
            raise ValueError(f"{name}: expected a step without random numbers")
        if i == 0 and image.shape == (3, *picture.shape[:2]):  # later steps see what this one has read
            read_by_step = np.moveaxis(image, 0, -1).round().astype(np.uint8)
            if np.abs(read_by_step - picture.astype(np.int16)).max() <= DECODED:
                picture = read_by_step
        _require_equal(Preprocessing((), **_described(pipeline[: i + 1])), picture, image, name)
        sample = data.get("data_samples")
    if sample is None:
        raise ValueError(f"test_pipeline: expected PackDetInputs at its end, got {pipeline[-1]['type']}")
    described, name = Preprocessing((), **_described(pipeline, preprocessor)), "data_preprocessor"
    inputs = preprocessor({"inputs": [data["inputs"]], "data_samples": [sample]}, False)["inputs"]
    size = _require_equal(described, picture, inputs[0].cpu().numpy(), name)
    factors = [n / m for n, m in zip(size[::-1], picture.shape[1::-1], strict=True)]
    if not np.allclose(sample.get("scale_factor", factors), factors):
        raise ValueError(
            f"test_pipeline: scale_factor: expected {factors}, got {sample.scale_factor}: MMDetection "
            "divides boxes by the factor of the last Resize only"
        )


def _require_equal(
    described: Preprocessing, picture: np.ndarray, image: np.ndarray, name: str
) -> tuple[int, int]:
    """Raise ValueError unless the description's input is ``image``; return its size without padding."""
    inputs, size = described(picture)
    problem = "another size"
    if inputs.shape[1:] == image.shape:
        difference = np.abs(inputs[0] - image).max()
        if difference <= ROUNDED * max(1, np.abs(image).max()):
            return size
        problem = f"values that differ by {difference:.3g}"
    raise ValueError(f"{name}: cannot be stored in a file: its input would have {problem}")


def _random_states() -> str:
    state: Any = np.random.get_state()  # noqa: NPY002  the state that steps change
    return str((random.getstate(), state[1].tolist(), state[2], torch.get_rng_state().tolist()))


def _described(pipeline: Sequence[Mapping], preprocessor: Any = None) -> dict[str, Any]:
    """Return the attributes of a description, which the caller compares: it reads the main arguments only."""
    rgb = bool(getattr(preprocessor, "_channel_conversion", False))
    values: dict[str, Any] = dict(rgb=rgb, mean=(0.0,) * 3, std=(1.0,) * 3, scale=None, keep_ratio=True)
    values["pad_divisor"] = getattr(preprocessor, "pad_size_divisor", 1)
    values["pad_value"] = float(getattr(preprocessor, "pad_value", 0))
    if getattr(preprocessor, "_enable_normalize", False):
        values |= {key: tuple(getattr(preprocessor, key).flatten().tolist()) for key in ("mean", "std")}
    is_normalised = False
    for step in pipeline:
        kind = step["type"] if inspect.isclass(step["type"]) else TRANSFORMS.get(step["type"])
        if not inspect.isclass(kind):
            continue
        if issubclass(kind, transforms.LoadImageFromFile):
            values["float32"] = bool(step.get("to_float32", False))
        elif issubclass(kind, transforms.Resize) and (scale := step.get("scale")):
            values["scale"] = (scale, scale) if isinstance(scale, int) else tuple(scale)
            values["keep_ratio"] = step.get("keep_ratio", False)
            values["resize_by"] = step.get("backend", "cv2")
        elif issubclass(kind, transforms.Pad):
            values |= _padding(step)
            if is_normalised:
                mean, std = values["mean"], values["std"]
                value = (m + s * v for m, s, v in zip(mean, std, values["value"], strict=True))
                values["value"] = tuple(value)[:: -1 if values["rgb"] else 1]
        elif issubclass(kind, transforms.Normalize):
            values |= {key: tuple(map(float, step[key])) for key in ("mean", "std")}
            values["rgb"], is_normalised = step.get("to_rgb", True), True
    return values


# arguments of LoadImageFromFile, and their values with which it returns the pixels of detect.pictures.read
# (Pillow's are others for 16 bits, and for grey with transparency)
READ = {"color_type": ("color",), "imdecode_backend": ("cv2", "pillow", "turbojpeg", None)}


def require_colour(step: Mapping) -> None:
    """Raise ModelError if a config's ``LoadImageFromFile`` reads other channels or values or ignores EXIF."""
    for name, values in READ.items():
        if (value := step.get(name, values[0])) not in values:
            expected = ", ".join(map(repr, values))
            raise ModelError(
                f"test_pipeline: LoadImageFromFile: {name}: expected {expected}, got {value!r}, with which "
                "only dcnzoo train and dcnzoo test read pictures"
            )


def _padding(step: Mapping) -> dict[str, Any]:
    """Return the attributes for a ``Pad`` step of a pipeline."""
    value = step.get("pad_val", 0)
    value = value.get("img", 0) if isinstance(value, Mapping) else value
    value = (value,) * 3 if isinstance(value, (int, float)) else tuple(value)
    size = step.get("size")  # (width, height); MMDetection ignores it if there is a divisor
    size = (size, size) if isinstance(size, int) else size
    divisor = step.get("size_divisor")
    return {
        "square": bool(step.get("pad_to_square", False)),
        "divisor": divisor or 1,
        "least": tuple(size)[::-1] if size and not divisor else (0, 0),
        "value": tuple(map(float, value)),
    }
