"""Sizes of pictures, as a training loads them."""

from pathlib import Path

from PIL import Image

from dcnzoo.data.files import InvalidAnnotation

_ORIENTATION = 0x0112


def image_size(file: Path) -> tuple[int, int]:
    """Return (width, height) of a picture, turned by its EXIF orientation.

    Raises:
        InvalidAnnotation: it does not exist, or is no picture.
    """
    try:
        with Image.open(file) as image:
            exif = Image.Exif()
            if image.format != "AVIF":  # OpenCV turns it by its own property
                exif.load(image.info.get("exif", b""))
            return image.size[::-1] if exif.get(_ORIENTATION, 1) in (5, 6, 7, 8) else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidAnnotation(f"expected a picture at {file}: {error}") from None
