"""Convert pictures to a detector's input, and its outputs to detections. Requires only numpy."""

from __future__ import annotations

import colorsys
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcnzoo.utils.files import replacing

if TYPE_CHECKING:
    import PIL.Image

# keys in the ONNX file's metadata
KEY = "dcnzoo"
CLIPS = "dcnzoo.clips"  # "False": boxes may extend beyond the image, as in YOLOv3


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects in a picture, best first; boxes and masks are in pixels of the picture."""

    boxes: np.ndarray  # [K, 4], float32, (x1, y1, x2, y2)
    scores: np.ndarray  # [K], float32
    labels: np.ndarray  # [K], int64, indices into classes
    masks: np.ndarray | None = None  # [K, H, W], bool; None if the model predicts no masks
    classes: tuple[str, ...] = ()  # all names that the detector has; empty if unknown
    image: np.ndarray | None = None  # [H, W, 3], uint8, RGB
    path: str = ""  # of the picture, if it was read from a file

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        counts = Counter(self.names).most_common()
        return f"Detections({', '.join(f'{count} {name}' for name, count in counts) or 'none'})"

    @property
    def names(self) -> list[str]:
        """The class of each object."""
        known = dict(enumerate(self.classes))
        return [known.get(label, str(label)) for label in self.labels.tolist()]

    def select(self, index: np.ndarray | slice) -> Detections:
        """Select objects by their numbers, by a mask [K], or by a slice."""
        masks = None if self.masks is None else self.masks[index]
        parts = {"boxes": self.boxes[index], "scores": self.scores[index], "labels": self.labels[index]}
        return dataclasses.replace(self, **parts, masks=masks)

    def draw(self, with_scores: bool = True) -> PIL.Image.Image:
        """Draw boxes, masks and names on the picture. Small ones are enlarged to a width of 600 pixels."""
        from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

        if self.image is None:
            raise ValueError("image: expected the result of a detector, which has its picture, got none")
        height, width = self.image.shape[:2]
        scale = max(1, 600 / width)
        size = (round(width * scale), round(height * scale))
        picture = Image.fromarray(self.image).resize(size, Image.Resampling.NEAREST)
        canvas, font = ImageDraw.Draw(picture), ImageFont.load_default(max(14, size[0] // 42))
        line = max(2, size[0] // 300)
        colours = [colorsys.hsv_to_rgb(label * 0.618 % 1, 0.9, 0.75) for label in self.labels.tolist()]
        fills = [tuple(round(255 * part) for part in colour) for colour in colours]
        boxes = (self.boxes * scale).tolist()
        for i in reversed(range(len(self))):  # the best on top
            mask = Image.fromarray(255 * self.masks[i].astype(np.uint8)) if self.masks is not None else None
            if mask and mask.getbbox():
                mask = mask.resize(size, Image.Resampling.NEAREST)
                x1, y1, x2, y2 = mask.getbbox()
                place = (x1 - line, y1 - line, x2 + line, y2 + line)
                part = mask.crop(place)  # a thin tint and an outline: the object's own colour stays visible
                outline = ImageChops.subtract(part, part.filter(ImageFilter.MinFilter(2 * line - 1)))
                picture.paste(fills[i], place, ImageChops.lighter(outline, part.point(lambda v: v // 7)))
            x1, y1, x2, y2 = boxes[i]
            canvas.line([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], fills[i], line)
        labels: list[tuple[float, ...]] = []  # what is covered by the labels that are drawn
        for (x, y, _, _), name, score, fill in zip(boxes, self.names, self.scores, fills, strict=True):
            text = f"{name} {score:.2f}" if with_scores else name
            left = max(min(x, size[0] - font.getlength(text)), 0)
            step = 1.25 * font.size
            tops = [max(y - step, 0) + step * n for n in range(round(size[1] / step))] or [0]
            areas = [canvas.textbbox((left, top), text, font) for top in tops]
            free = (n for n, area in enumerate(areas) if not any(_overlap(area, each) for each in labels))
            n = next(free, 0)
            labels.append(areas[n])
            canvas.rectangle(areas[n], fill)
            canvas.text((left, tops[n]), text, "white", font)
        return picture

    def save(self, path: str | os.PathLike) -> None:
        """Draw the objects into a picture file; its ending determines the format."""
        from PIL import Image

        kind = Image.registered_extensions().get(Path(path).suffix.lower())
        if kind is None:
            raise ValueError(f"path: expected a name that ends in .png or .jpg, got {path}")
        with replacing(path) as partial:
            self.draw().save(partial, kind)

    def to_coco(self, content: dict | None = None) -> dict:
        """Return the content of a COCO file, or append to ``content``, the result of an earlier call.

        Category ids start at 1, in the order of the classes. Masks require pycocotools.
        """
        if content is None:
            categories = [{"id": number, "name": name} for number, name in enumerate(self.classes, 1)]
            content = {"images": [], "categories": categories, "annotations": []}
        image = {"id": len(content["images"]) + 1, "file_name": self.path}
        if self.image is not None:
            image.update(width=self.image.shape[1], height=self.image.shape[0])
        content["images"].append(image)
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": int(self.labels[i]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(self.scores[i]),
            }
            if self.masks is not None:
                from pycocotools.mask import encode

                mask = encode(np.asfortranarray(self.masks[i], dtype=np.uint8))
                annotation["segmentation"] = {**mask, "counts": mask["counts"].decode()}
            content["annotations"].append(annotation)
        return content


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:  # each (x1, y1, x2, y2)
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The image operations of a detector's test pipeline and data preprocessor.

    Attributes:
        classes: names of the labels; may be empty.
        rgb: reverse the channels (pictures are read as BGR).
        mean, std: per channel, in the model's order.
        scale: (width, height) to resize to; with ``keep_ratio`` the bounds, in either orientation; None: no
            resizing.
        pad_divisor: the model pads the normalised image with zeros, at right and bottom, to a multiple of
            this.
        square, divisor, least: padding by the pipeline: to a square, to a multiple, or to at least
            (height, width).
        value: padding value of the pipeline before normalisation, in the order blue, green, red.
    """

    classes: tuple[str, ...]
    rgb: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[int, int] | None
    keep_ratio: bool
    pad_divisor: int
    square: bool = False
    divisor: int = 1
    least: tuple[int, int] = (0, 0)
    value: tuple[float, ...] = (0.0,) * 3

    @classmethod
    def of(cls, pipeline: Sequence[Mapping], preprocessor: Any, classes: Sequence[str]) -> Preprocessing:
        """Read it from a config's test pipeline and a model's ``data_preprocessor``.

        Raises:
            ValueError: they contain an operation that these attributes cannot describe.
        """
        scale, keep_ratio, pad = None, True, None
        rgb, normalised = bool(preprocessor._channel_conversion), preprocessor._enable_normalize
        mean, std = (0.0,) * 3, (1.0,) * 3
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
            elif kind not in ("LoadImageFromFile", "LoadAnnotations", "PackDetInputs"):
                raise ValueError(
                    "test_pipeline: expected LoadImageFromFile, Resize (bilinear, to a scale), Pad (with a "
                    f"constant), Normalize (once), LoadAnnotations and PackDetInputs, got {dict(step)}"
                )
            seen.append(kind)
        if preprocessor.pad_value != 0:
            raise ValueError(f"data_preprocessor: pad_value: expected 0, got {preprocessor.pad_value}")
        return cls(
            classes=tuple(classes),
            rgb=rgb,
            mean=mean,
            std=std,
            scale=scale,
            keep_ratio=keep_ratio,
            pad_divisor=preprocessor.pad_size_divisor,
            **(pad or {}),
        )

    def to_metadata(self) -> dict[str, str]:
        return {KEY: json.dumps(dataclasses.asdict(self))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Preprocessing:
        """Read it from the metadata of an exported file.

        Raises:
            ValueError: the metadata does not contain the output of :meth:`to_metadata`.
        """
        try:
            values = json.loads(metadata[KEY])
            values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "expected a detector written by dcnzoo export with its "
                f"preprocessing ('{KEY}' in the metadata), got keys {sorted(metadata)}"
            ) from error

    def __call__(
        self,
        picture: np.ndarray,  # [H, W, 3], uint8, BGR
        limit: tuple[int | None, int | None] = (None, None),
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the model's input, [1, 3, h, w], and the height and width of the image without padding.

        Args:
            limit: the model's maximum height and width, if any.
        """
        size = self._size(picture.shape[:2], limit)
        image = picture.astype(np.float32)
        if size != picture.shape[:2]:
            image = np.rint(resized(image, size))  # rounded to integers, as uint8 images are in training
        image = _padded(image, self.padded(size, limit), self.value)
        if self.rgb:
            image = image[..., ::-1]
        image = (image - np.float32(self.mean)) / np.float32(self.std)
        whole = [
            extent if most is not None else extent + -extent % self.pad_divisor
            for extent, most in zip(image.shape, limit, strict=False)
        ]
        image = _padded(image, whole, (0.0,) * 3)
        return np.ascontiguousarray(image.transpose(2, 0, 1)[None]), size

    def padded(
        self, size: tuple[int, int], limit: tuple[int | None, int | None] = (None, None)
    ) -> tuple[int, int]:
        """Return the height and width after the pipeline's padding: MMDetection's ``img_shape``."""
        height, width = (max(size),) * 2 if self.square else size
        whole = [
            max(extent + -extent % self.divisor, least)
            for extent, least in zip((height, width), self.least, strict=True)
        ]
        return tuple(min(extent, most or extent) for extent, most in zip(whole, limit, strict=True))

    def _size(self, given: tuple[int, int], limit: tuple[int | None, int | None]) -> tuple[int, int]:
        most = [size or np.inf for size in limit]
        if self.scale is not None and not self.keep_ratio:
            return tuple(int(min(pair)) for pair in zip(self.scale[::-1], most, strict=True))
        factor = 1.0
        if self.scale is not None:
            factor = min(max(self.scale) / max(given), min(self.scale) / min(given))
        size = tuple(max(1, int(extent * factor + 0.5)) for extent in given)
        if all(extent <= largest for extent, largest in zip(size, most, strict=True)):
            return size
        factor = min(largest / extent for extent, largest in zip(given, most, strict=True))
        return tuple(max(1, int(extent * factor + 0.5)) for extent in given)


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


def _padded(image: np.ndarray, size: Sequence[int], value: tuple[float, ...]) -> np.ndarray:
    """Place an image [H, W, 3] in the upper left corner of a larger one."""
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    whole = np.empty((*size, 3), image.dtype)
    whole[:] = value
    whole[:height, :width] = image
    return whole


def read(image: Any, bgr: bool = False) -> np.ndarray:
    """Read a picture, [H, W, 3], uint8, BGR.

    Args:
        image: a file; a PIL image; an array, [H, W, 3], uint8, RGB; or a tensor, [3, H, W], RGB, uint8 or
            between 0 and 1.
        bgr: arrays and tensors are BGR.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: neither OpenCV nor Pillow is installed.
        ValueError: it is not a picture.
    """
    if isinstance(image, str | os.PathLike):
        return _read_file(image)
    if hasattr(image, "getexif"):
        return _from_pillow(image)
    if hasattr(image, "detach"):
        image = image.detach().cpu()
        if image.is_floating_point() and image.numel() and image.min() >= 0 and image.max() <= 1:
            image = (255 * image).round().byte()
        image = image.numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"image: expected a path, a PIL image, an array or a tensor, got {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"image: expected [H, W, 3], uint8 (tensor: [3, H, W], uint8 or between 0 and 1), got "
            f"{list(image.shape)}, {image.dtype}"
        )
    return image if bgr else np.ascontiguousarray(image[..., ::-1])


def _read_file(path: str | os.PathLike) -> np.ndarray:
    if not Path(path).is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    try:
        import cv2
    except ModuleNotFoundError:
        return _read_with_pillow(path)
    try:
        content = np.fromfile(path, np.uint8)
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except cv2.error:  # more than 2^30 pixels, which is more than Pillow accepts: its error has their number
        return _read_with_pillow(path)
    if picture is None:
        raise ValueError(f"image: expected a picture that OpenCV can read, got {path}")
    return picture


def _read_with_pillow(path: str | os.PathLike) -> np.ndarray:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ImportError(
            "image: expected an array, or OpenCV or Pillow to read a file with: pip install pillow"
        ) from error
    try:
        with Image.open(path) as opened:
            return _from_pillow(opened)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"image: expected a picture that Pillow can read, got {path}: {error}") from None


def _from_pillow(image: PIL.Image.Image) -> np.ndarray:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"image: expected a PIL image with 8 or 16 bits, got the mode {image.mode}")
    if image.mode.startswith("I;16"):  # Pillow's conversion would saturate at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])


def resized(
    image: np.ndarray,  # [H, W, …], float32
    size: tuple[int, int],
    region: tuple[slice, slice] = (slice(None), slice(None)),
) -> np.ndarray:
    """Resize bilinearly like ``cv2.resize``; compute only ``region`` of the result, if given."""
    for axis in (0, 1):
        extent = image.shape[axis]
        place = (np.arange(size[axis])[region[axis]] + 0.5) * (extent / size[axis]) - 0.5
        place = place.clip(0, extent - 1)
        low = place.astype(np.intp)
        part = (place - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
        above, below = image.take(low, axis), image.take(np.minimum(low + 1, extent - 1), axis)
        image = above + (below - above) * part
    return image


def rescale_detections(
    outputs: Mapping[str, np.ndarray],
    size: tuple[int, int],
    picture_size: tuple[int, int],
    metadata: Mapping[str, str],
    border: tuple[int, int] | None = None,
) -> Detections:
    """Convert one image's outputs from pixels of the model's input to pixels of the picture.

    Args:
        size: height and width of the input without padding.
        picture_size: height and width of the picture.
        metadata: of the model.
        border: boxes are clipped to this height and width of the input: the size after the pipeline, which
            exceeds ``size`` if the pipeline pads.
    """
    there = outputs["labels"] >= 0
    dets = outputs["dets"][there]
    factor = np.array([picture_size[1] / size[1], picture_size[0] / size[0]] * 2)
    boxes = dets[:, :4]
    if metadata.get(CLIPS) != "False":  # the graph clips to its input, which includes padding
        boxes = boxes.clip(0, (border or size)[::-1] * 2)
    boxes = (boxes * factor).astype(np.float32)
    masks = None
    if "masks" in outputs:
        masks = np.zeros((len(dets), *picture_size), bool)
        margin = np.ceil(factor[:2]) + 1  # the reach of the interpolation
        first = np.floor(boxes[:, :2] - margin).clip(0).astype(int)
        last = np.ceil(boxes[:, 2:] + margin).clip(0).astype(int)
        for mask, soft, (x1, y1), (x2, y2) in zip(masks, outputs["masks"][there], first, last, strict=True):
            # resize probabilities, then threshold: a thresholded mask would have a less exact border
            region = (slice(y1, y2), slice(x1, x2))
            probability = resized(soft[: size[0], : size[1]].astype(np.float32), picture_size, region)
            mask[region] = probability >= 127.5
    return Detections(boxes, dets[:, 4], outputs["labels"][there], masks)
