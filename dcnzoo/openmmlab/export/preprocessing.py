"""The preprocessing of exported files, described from a config's test pipeline; ``verify`` compares it.

The description is a :class:`dcnzoo.detect.preprocessing.Preprocessing`, which is stored in the file and runs
without torch. A step that it cannot describe is refused by name.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmcv import transforms
from mmdet.datasets import transforms as mmdet_transforms
from mmdet.registry import TRANSFORMS
from mmengine.registry import DefaultScope

from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.detect.sources import ModelError

# arguments that are described, or change nothing here
FILES = {"type", "backend_args", "file_client_args"}
RESIZE = {"type", "scale", "keep_ratio", "backend", "clip_object_border"}
STORED = {
    transforms.LoadImageFromFile: {*FILES, "to_float32", "color_type", "imdecode_backend"},
    mmdet_transforms.Resize: RESIZE,
    transforms.Resize: RESIZE,
    mmdet_transforms.Pad: {"type", "size", "size_divisor", "pad_to_square", "pad_val"},
    transforms.Normalize: {"type", "mean", "std", "to_rgb"},
}
SKIPPED = (mmdet_transforms.LoadAnnotations, mmdet_transforms.PackDetInputs)


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


def preprocessing_of(pipeline: Sequence[Mapping], preprocessor: Any, classes: Sequence[str]) -> Preprocessing:
    """Describe a config's test pipeline and a model's ``data_preprocessor``.

    Steps are described in the order Resize, Pad, Normalize; :mod:`dcnzoo.openmmlab.export.verify` compares a
    file with the pipeline itself.

    Raises:
        ValueError: a step cannot be stored in a file; the message names it.
    """
    normalises = bool(getattr(preprocessor, "_enable_normalize", False))
    rgb = bool(getattr(preprocessor, "_channel_conversion", False))
    values: dict[str, Any] = dict(rgb=rgb, mean=(0.0,) * 3, std=(1.0,) * 3, scale=None, keep_ratio=True)
    values["pad_divisor"] = getattr(preprocessor, "pad_size_divisor", 1)
    values["pad_value"] = float(getattr(preprocessor, "pad_value", 0))
    if normalises:
        values |= {key: tuple(getattr(preprocessor, key).flatten().tolist()) for key in ("mean", "std")}
    is_normalised = False
    for step in pipeline:
        with DefaultScope.overwrite_default_scope("mmdet"):
            kind = step["type"] if inspect.isclass(step["type"]) else TRANSFORMS.get(step["type"])
        if kind in SKIPPED or step.get("prob") == 0:
            continue
        stored, default = STORED.get(kind, {"type"}), ("interpolation", "bilinear")
        unknown = [f"{k}={v!r}" for k, v in step.items() if k not in stored and (k, v) != default]
        is_padding = kind is mmdet_transforms.Pad
        is_late = "divisor" in values and ("scale" in step or is_padding)
        if unknown or kind not in STORED or is_late or ("scale" in step and values["scale"]):
            problem = ", ".join(unknown) or "the step" + " after Pad" * is_late
            raise ValueError(f"test_pipeline: {step['type']}: {problem} cannot be stored in a file")
        if kind is transforms.LoadImageFromFile:
            require_colour(step)
            values["float32"] = bool(step.get("to_float32", False))
        elif "scale" in step:
            scale = step["scale"]
            values["scale"] = (scale, scale) if isinstance(scale, int) else tuple(scale)
            values["keep_ratio"] = step.get("keep_ratio", False)
            values["resize_by"] = step.get("backend", "cv2")
        elif is_padding:
            values |= _padding(step)
            if is_normalised:
                mean, std = values["mean"], values["std"]
                value = (m + s * v for m, s, v in zip(mean, std, values["value"], strict=True))
                values["value"] = tuple(value)[:: -1 if values["rgb"] else 1]
        elif kind is transforms.Normalize:
            if normalises or rgb:
                raise ValueError(
                    "data_preprocessor: cannot be stored in a file: the pipeline normalises, too"
                )
            values |= {key: tuple(map(float, step[key])) for key in ("mean", "std")}
            values["rgb"], is_normalised = step.get("to_rgb", True), True
    return Preprocessing(tuple(classes), **values)


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
