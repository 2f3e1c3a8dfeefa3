"""Convert pictures to a detector's input, as its exported file describes it. Requires only numpy."""

import dataclasses
import json
import sys
from collections.abc import Mapping

import numpy as np

from dcnzoo.detect.pictures import resize_picture

KEY = "dcnzoo"  # in the file's metadata


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The image operations of a detector's test pipeline and data preprocessor.

    Attributes:
        classes: names of the labels; may be empty.
        rgb: reverse the channels (pictures are read as BGR).
        mean, std: per channel, in the model's order.
        scale: (width, height) to resize to; with ``keep_ratio`` the bounds, in either orientation; None: no
            resizing.
        pad_divisor: the model pads the normalised image, at right and bottom, to a multiple of this.
        square, divisor, least: padding by the pipeline: to a square, to a multiple, or to at least
            (height, width).
        value: padding value of the pipeline before normalisation, in the order blue, green, red.
        pad_value: the value with which the model pads, after normalisation.
        resize_by: ``"cv2"``, or ``"pillow"``, which averages more pixels when it shrinks a picture.
        float32: resize in float32, without rounding.
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
    pad_value: float = 0.0
    resize_by: str = "cv2"
    float32: bool = False

    def to_metadata(self) -> dict[str, str]:
        return {KEY: json.dumps(dataclasses.asdict(self))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Preprocessing":
        """Read the operations from the metadata of an exported file.

        Raises:
            ValueError: the metadata does not contain the output of :meth:`to_metadata`.
        """
        try:
            values = json.loads(metadata[KEY])
            for name, value in values.items():
                values[name] = tuple(value) if isinstance(value, list) else value
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected a detector with its preprocessing ('{KEY}' in the metadata), which dcnzoo export "
                f"writes unless it says why it cannot, got keys {sorted(metadata)}: {error}"
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
        size = self.size((picture.shape[0], picture.shape[1]), limit)
        if self.float32:
            picture = picture.astype(np.float32)
        picture = resize_picture(picture, size, self.resize_by)
        padded = self.padded(size, limit)
        shape = [
            extent if most is not None else extent + -extent % self.pad_divisor
            for extent, most in zip(padded, limit, strict=True)
        ]
        order = [2, 1, 0] if self.rgb else [0, 1, 2]
        mean, std, value = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std, self.value))
        image = np.full((3, *shape), self.pad_value, np.float32)
        image[:, : padded[0], : padded[1]] = (value[order] - mean) / std
        part = image[:, : size[0], : size[1]]
        np.subtract(picture.transpose(2, 0, 1)[order], mean, out=part)
        part /= std
        return image[None], size

    def padded(
        self, size: tuple[int, int], limit: tuple[int | None, int | None] = (None, None)
    ) -> tuple[int, int]:
        """Return the height and width after the pipeline's padding: MMDetection's ``img_shape``."""
        height, width = (
            min(max(extent + -extent % self.divisor, least), most or sys.maxsize)
            for extent, least, most in zip(
                (max(size),) * 2 if self.square else size, self.least, limit, strict=True
            )
        )
        return height, width

    def size(
        self, picture_size: tuple[int, int], limit: tuple[int | None, int | None] = (None, None)
    ) -> tuple[int, int]:
        """Return the height and width that a picture of this size has after resizing."""
        most_height, most_width = (most or sys.maxsize for most in limit)
        if self.scale is not None and not self.keep_ratio:
            return min(self.scale[1], most_height), min(self.scale[0], most_width)
        factor = 1.0
        if self.scale is not None:
            factor = min(max(self.scale) / max(picture_size), min(self.scale) / min(picture_size))
        height, width = _scaled(picture_size, factor)
        if height <= most_height and width <= most_width:
            return height, width
        return _scaled(picture_size, min(most_height / picture_size[0], most_width / picture_size[1]))


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    height, width = (max(1, int(extent * factor + 0.5)) for extent in size)
    return height, width
