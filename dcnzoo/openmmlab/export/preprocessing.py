"""The preprocessing of exported files, read from a config's test pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.detect.sources import ModelError


def preprocessing_of(pipeline: Sequence[Mapping], preprocessor: Any, classes: Sequence[str]) -> Preprocessing:
    """Read it from a config's test pipeline and a model's ``data_preprocessor``.

    Raises:
        ValueError: they contain an operation that these attributes cannot describe.
    """
    scale, keep_ratio, pad = None, True, None
    rgb, normalised = bool(preprocessor._channel_conversion), preprocessor._enable_normalize
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if normalised:
        mean, std = (tuple(t.flatten().tolist()) for t in (preprocessor.mean, preprocessor.std))
    seen: list[str] = []
    for step in pipeline:
        kind = str(step["type"]).removeprefix("mmdet.")
        first = scale is None and pad is None
        bilinear = step.get("interpolation", "bilinear") == "bilinear"
        if kind == "Resize" and first and step.get("scale") and bilinear:
            scale = step["scale"]
            scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
            keep_ratio = step.get("keep_ratio", False)
        elif kind == "Pad" and pad is None and step.get("padding_mode", "constant") == "constant":
            pad = _padding(step)
            if normalised and "Normalize" in seen:
                value = (m + s * v for m, s, v in zip(mean, std, pad["value"], strict=True))
                pad["value"] = tuple(value)[:: -1 if rgb else 1]
        elif kind == "Normalize" and not normalised and not rgb:
            rgb, normalised = step.get("to_rgb", True), True
            mean, std = (tuple(map(float, step[key])) for key in ("mean", "std"))
        elif kind == "LoadImageFromFile":
            require_colour(step)
        elif kind not in ("LoadAnnotations", "PackDetInputs"):
            raise ValueError(
                "test_pipeline: expected LoadImageFromFile, Resize (bilinear, to a scale), Pad (with a "
                f"constant), Normalize (once), LoadAnnotations and PackDetInputs, got {dict(step)}"
            )
        seen.append(kind)
    if preprocessor.pad_value != 0:
        raise ValueError(f"data_preprocessor: pad_value: expected 0, got {preprocessor.pad_value}")
    return Preprocessing(
        classes=tuple(classes),
        rgb=rgb,
        mean=mean,
        std=std,
        scale=scale,
        keep_ratio=keep_ratio,
        pad_divisor=preprocessor.pad_size_divisor,
        **(pad or {}),
    )


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
