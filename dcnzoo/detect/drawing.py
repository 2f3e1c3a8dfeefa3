"""Draw objects on a picture. Requires Pillow."""

import colorsys
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from dcnzoo.detect.crops import Crops
from dcnzoo.detect.pictures import picture_to_show, reverse_channels

_FONTS = (  # Pillow searches the system's folders
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc",
    "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf",
    "Arial Unicode.ttf", "msyh.ttc", "malgun.ttf",
)  # fmt: skip


def draw(
    image: np.ndarray,  # [H, W, 3], RGB
    boxes: np.ndarray,  # [K, 4], the best first
    labels: np.ndarray,  # [K]; a colour each
    texts: Sequence[str],  # [K], at the boxes
    masks: Crops | None,  # [K, H, W]
) -> Image.Image:
    """Draw boxes, masks and texts on a picture: see :meth:`dcnzoo.detect.detections.Detections.draw`."""
    height, width = image.shape[:2]
    scale = max(1, min(600 / width, 1200 / height))  # texts need some width
    size = (round(width * scale), round(height * scale))
    picture = Image.fromarray(picture_to_show(image, bgr=False)).resize(size, Image.Resampling.NEAREST)
    canvas, font = ImageDraw.Draw(picture), _font("".join(texts), max(14, size[0] // 42))
    line = max(2, size[0] // 300)
    colours = [colorsys.hsv_to_rgb(label * 0.618 % 1, 0.9, 0.75) for label in labels.tolist()]
    fills = [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colours]
    corners = (boxes * scale).tolist()
    for i in reversed(range(len(corners))):  # the best on top
        if masks is not None and np.any(masks[i]):
            mask = Image.fromarray(255 * masks[i].astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
            x1, y1, x2, y2 = mask.getbbox() or (0, 0, 0, 0)
            place = (x1 - line, y1 - line, x2 + line, y2 + line)
            part = mask.crop(place)  # a thin tint and an outline: the object's own colour stays visible
            outline = ImageChops.subtract(part, part.filter(ImageFilter.MinFilter(2 * line - 1)))
            picture.paste(fills[i], place, ImageChops.lighter(outline, part.point(lambda v: v // 7)))
        x1, y1, x2, y2 = corners[i]
        canvas.line([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], fills[i], line)
    drawn: list[tuple[float, ...]] = []  # the areas of the texts that are already drawn
    for (x, y, _, _), text, fill in zip(corners, texts, fills, strict=True):
        left = max(min(x, size[0] - font.getlength(text)), 0)
        step = 1.25 * font.size
        tops = [max(y - step, 0) + step * n for n in range(round(size[1] / step))] or [0]
        areas = ((top, canvas.textbbox((left, top), text, font)) for top in tops)
        free = (each for each in areas if not any(_overlap(each[1], other) for other in drawn))
        top, area = next(free, None) or (tops[0], canvas.textbbox((left, tops[0]), text, font))
        drawn.append(area)
        canvas.rectangle(area, fill)
        canvas.text((left, top), text, "white", font)
    return picture


def encoded(picture: Image.Image, kind: str) -> bytes:
    """Encode a picture in a format of Pillow; OpenCV, if installed, writes PNG twice as fast."""
    if kind == "PNG" and find_spec("cv2"):
        import cv2

        return cv2.imencode(".png", reverse_channels(np.asarray(picture)))[1].tobytes()
    file = io.BytesIO()
    picture.save(file, kind, compress_level=1)
    return file.getvalue()


def _font(text: str, size: int) -> Any:  # ImageFont.FreeTypeFont
    """Return the first installed font that has all characters of a text; Pillow's own has only ASCII."""
    font = ImageFont.load_default(size)
    names = [] if text.isascii() else list(_FONTS)
    if names and (matplotlib := find_spec("matplotlib")) and matplotlib.origin:
        names.insert(0, str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"))
    for name in names:
        try:
            other = ImageFont.truetype(name, size)
        except OSError:
            continue
        missing = bytes(other.getmask("\uffff"))
        if all(bytes(other.getmask(character)) != missing for character in set(text)):
            return other
    return font


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:  # each (x1, y1, x2, y2)
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
