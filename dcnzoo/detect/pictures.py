"""Read and resize pictures. Requires numpy and, to read files, OpenCV or Pillow."""

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from dcnzoo.utils.files import expanded, require_file

if TYPE_CHECKING:
    import PIL.Image


LIMIT = 100_000_000  # most bytes of a picture that is downloaded


def read(image: Any, bgr: bool = False, channels: int = 3) -> np.ndarray:
    """Read a picture, [H, W, channels], uint8; three channels are BGR.

    Args:
        image: a file (``~`` is the home folder) or an http:// or https:// address; its content, as bytes or
            an open file; a PIL image; an array, [H, W, 3], uint8, RGB, or [H, W], grey; or a tensor,
            [3, H, W], RGB, uint8 or between 0 and 1.
        bgr: arrays and tensors are BGR.
        channels: of the detector's input. With 1, files are read as grey pictures; with other numbers than 1
            and 3, only arrays and tensors are pictures.

    Raises:
        FileNotFoundError: the file does not exist.
        ImportError: neither OpenCV nor Pillow is installed; or, for an address, requests or rich.
        ValueError: it is not a picture, or cannot be downloaded.
    """
    if isinstance(image, str | os.PathLike):
        return _read_file(image, channels)
    if hasattr(image, "getexif"):
        return _from_pillow(image, channels)
    if hasattr(image, "read"):
        image = image.read()
    if isinstance(image, bytes | bytearray):
        return _decoded(bytes(image), f"{len(image)} bytes", channels)
    if hasattr(image, "detach"):
        image = image.detach().cpu()
        if image.is_floating_point() and image.numel() and image.min() >= 0 and image.max() <= 1:
            image = (255 * image).round().byte()
        image = image.numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise ValueError(
            "image: expected a path, bytes, a binary file, a PIL image, an array or a tensor, got "
            f"{type(image).__name__}"
        )
    picture = image[..., None] if image.ndim == 2 else image
    if channels == 3 and picture.shape[2:] == (1,):
        picture = picture.repeat(3, 2)
    if picture.ndim != 3 or picture.shape[2] != channels or picture.dtype != np.uint8 or picture.size == 0:
        raise ValueError(
            f"image: expected [H, W, {channels}], uint8 (tensor: [{channels}, H, W], uint8 or between 0 and "
            f"1), got {list(image.shape)}, {image.dtype}"
        )
    return reverse_channels(picture) if channels == 3 and not bgr else picture


def _read_file(path: str | os.PathLike, channels: int) -> np.ndarray:
    if "://" in str(path):
        return _decoded(_download(str(path)), path, channels)
    file = expanded(path)
    if file.is_dir():
        raise ValueError(f"image: expected a file, got the folder {path}: a folder is not part of a list")
    require_file(str(path), "image")
    return _decoded(file.read_bytes(), path, channels)


def _download(address: str) -> bytes:
    from dcnzoo.utils.fetch import DownloadError, opened

    content = bytearray()
    try:
        with opened(address) as response:
            for chunk in response.iter_content(2**16):
                content += chunk
                if len(content) > LIMIT:
                    raise DownloadError(f"{address}: expected at most {LIMIT:,} bytes, got more")
    except DownloadError as error:
        raise ValueError(f"image: {error}") from None
    return bytes(content)


def _decoded(content: bytes, name: str | os.PathLike, channels: int) -> np.ndarray:
    if channels not in (1, 3):
        raise ValueError(f"image: expected an array [H, W, {channels}] for this detector, got {name}")
    try:
        import cv2
    except ModuleNotFoundError:
        return _decoded_by_pillow(content, name, channels)
    kind = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), kind) if content else None
    except cv2.error:  # more than 2^30 pixels: Pillow, too, refuses them; its error has the number
        return _decoded_by_pillow(content, name, channels)
    if picture is None:
        raise ValueError(f"image: expected a picture that OpenCV can read, got {name}")
    return picture.reshape(*picture.shape[:2], channels)


def _decoded_by_pillow(content: bytes, name: str | os.PathLike, channels: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            return _from_pillow(opened, channels)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"image: expected a picture that Pillow can read, got {name}: {error}") from None


def _from_pillow(image: "PIL.Image.Image", channels: int) -> np.ndarray:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"image: expected a PIL image with 8 or 16 bits, got the mode {image.mode}")
    if image.mode.startswith("I;16"):  # Pillow's conversion would saturate at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if channels == 1:
        return np.asarray(image.convert("L"))[..., None]
    return reverse_channels(np.asarray(image.convert("RGB")))


def reverse_channels(picture: np.ndarray) -> np.ndarray:  # [H, W, 3]
    """Return a copy with RGB for BGR. To copy ``picture[..., ::-1]`` would take five times as long."""
    copy = np.empty(picture.shape, picture.dtype)
    for channel in range(3):
        copy[..., channel] = picture[..., 2 - channel]
    return copy


def picture_to_show(picture: np.ndarray) -> np.ndarray:
    """Return a picture for drawings and pages, [H, W, 3], uint8, RGB.

    Args:
        picture: [H, W] or [H, W, C]; uint8, uint16, or another type with values between 0 and 255. With
            more than three channels, the first three are shown as BGR; with two, only the first.
    """
    if picture.dtype == np.uint16:
        picture = picture >> 8
    elif picture.dtype != np.uint8:
        picture = np.rint(picture).clip(0, 255)
    channels = picture.astype(np.uint8, copy=False).reshape(*picture.shape[:2], -1)
    if channels.shape[2] < 3:
        return channels[..., :1].repeat(3, 2)
    return reverse_channels(channels[..., :3])


def resize_picture(picture: np.ndarray, size: tuple[int, int], by: str = "cv2") -> np.ndarray:
    """Resize [H, W, …], uint8 or float32, bilinearly with OpenCV, or with Pillow, whose filter differs.

    Without OpenCV, the result is within one grey level of OpenCV's.
    """
    if size == picture.shape[:2]:
        return picture
    if by == "pillow":
        from PIL import Image

        return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR))
    try:
        import cv2
    except ModuleNotFoundError:
        values = resized(picture.astype(np.float32), size)
        return np.rint(values) if picture.dtype == np.uint8 else values
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)


def resized(
    image: np.ndarray,  # [H, W, …], float32
    size: tuple[int, int],
    region: tuple[slice, slice] = (slice(None), slice(None)),
) -> np.ndarray:
    """Resize bilinearly like ``cv2.resize``; compute only ``region`` of the result, if given."""
    for axis in (0, 1):
        extent = image.shape[axis]
        at = (np.arange(size[axis])[region[axis]] + 0.5) * (extent / size[axis]) - 0.5
        at = at.clip(0, extent - 1)
        low = at.astype(np.intp)
        part = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
        above, below = image.take(low, axis), image.take(np.minimum(low + 1, extent - 1), axis)
        image = above + (below - above) * part
    return image
