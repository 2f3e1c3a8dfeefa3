"""Draw objects on a picture. Requires Pillow."""

import colorsys
import functools
import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dcnzoo.detect.crops import Crops
from dcnzoo.utils.errors import note

if TYPE_CHECKING:
    from dcnzoo.detect.detections import Detections

_FONTS = (  # after Pillow's own and matplotlib's; Pillow searches the system's folders
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc",
    "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf",
    "Arial Unicode.ttf", "msyh.ttc", "malgun.ttf",
)  # fmt: skip


def draw(image: np.ndarray, objects: "Detections", with_scores: bool) -> Image.Image:  # [H, W, 3], RGB
    """Draw boxes, masks and texts on a picture: see :meth:`dcnzoo.detect.detections.Detections.draw`."""
    (height, width), masks = image.shape[:2], objects.crops
    scale = max(1, min(600 / width, 1200 / height))  # texts need some width
    size = (round(width * scale), round(height * scale))
    picture = Image.fromarray(image)
    if scale > 1:
        picture = picture.resize(size, Image.Resampling.NEAREST)
        masks = masks and _enlarged(masks, size)
    canvas, side = ImageDraw.Draw(picture), (size[0] * size[1]) ** 0.5
    line, letter = max(2, round(side / 300)), max(14, round(side / 42))
    labels, names = objects.labels.tolist(), objects.names
    colours = [colorsys.hsv_to_rgb(label * 0.618 % 1, 0.9, 0.75) for label in labels]
    fills = [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colours]
    corners = (objects.boxes * scale).tolist()
    for i in reversed(range(len(corners))):  # the best on top
        if masks is not None and masks.parts[i].any():
            y, x = masks.corners[i]
            opacity = Image.fromarray(_opacity(masks.parts[i], line))
            picture.paste(fills[i], (x, y, x + opacity.width, y + opacity.height), opacity)
        x1, y1, x2, y2 = corners[i]
        canvas.line([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)], fills[i], line)
    taken = np.zeros((0, 4))  # the areas of the texts that are already drawn, (x1, y1, x2, y2)
    for i, (x, y, _, _) in enumerate(corners):
        text, font = _text(names[i], labels[i], letter)
        if with_scores:
            text = f"{text} {objects.scores[i]:.2f}"
        left, step = max(round(min(x, size[0] - font.getlength(text))), 0), 1.25 * letter
        # a line apart, from above the box to the lower border of the picture and further
        tops = (max(y - step, 0) + step * np.arange(max(1, round(size[1] / step)))).round()
        areas = canvas.textbbox((left, 0), text, font) + tops[:, None] * [0, 1, 0, 1]
        free = _first_free(areas, taken)
        taken = np.vstack([taken, areas[free]])
        canvas.rectangle(areas[free].tolist(), fills[i])
        canvas.text((left, tops[free]), text, "white", font)
    return picture


def _first_free(areas: np.ndarray, taken: np.ndarray) -> int:  # [N, 4], [M, 4]
    """Return the number of the first area that overlaps none of those taken; 0 if each does."""
    overlaps = (areas[:, None, :2] < taken[:, 2:]) & (taken[:, :2] < areas[:, None, 2:])
    return int(np.argmin(np.any(np.all(overlaps, axis=2), axis=1)))


def _opacity(mask: np.ndarray, line: int) -> np.ndarray:  # [h, w], bool -> [h, w], uint8
    """Return a thin tint and an outline: the object's own colour stays visible."""
    inner, side = np.pad(mask, line - 1), 2 * line - 1
    for _ in range(2):  # the minimum of `side` rows, then columns, by shifts that double
        reached = 1
        while reached < side:
            shift = min(reached, side - reached)
            inner, reached = inner[shift:] & inner[:-shift], reached + shift
        inner = inner.T
    opacity = mask.astype(np.uint8) * np.uint8(36)
    opacity[mask & ~inner] = 255
    return opacity


def _enlarged(masks: Crops, size: tuple[int, int]) -> Crops:
    """Resize masks to (width, height) as Pillow resizes a picture to the nearest pixels."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size[::-1], masks.size, strict=True)
    )
    parts, corners = [], []
    for part, (y, x) in zip(masks.parts, masks.corners, strict=True):
        (top, bottom), (left, right) = (
            np.searchsorted(at, [start, start + n]).tolist()
            for at, start, n in zip((rows, columns), (y, x), part.shape, strict=True)
        )
        parts.append(part[rows[top:bottom] - y][:, columns[left:right] - x])
        corners.append((top, left))
    return Crops(parts, corners, size[::-1])


def encoded(picture: Image.Image, kind: str) -> bytes:
    """Encode a picture in a format of Pillow; OpenCV, if installed, writes PNG and JPEG twice as fast."""
    if kind in ("PNG", "JPEG") and find_spec("cv2"):
        import cv2

        pixels = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".png" if kind == "PNG" else ".jpg", pixels)[1].tobytes()
    file = io.BytesIO()
    picture.save(file, kind, compress_level=1, quality=95)
    return file.getvalue()


def _text(name: str, label: int, size: int) -> tuple[str, Any]:
    """Return a class's name and a font; the number of the class if no font has the name's letters."""
    if font := _font(name, size):
        return name, font
    _report_letters()  # once
    return str(label), _font("0", size)


@functools.lru_cache(1000)
def _font(text: str, size: int) -> Any:  # ImageFont.FreeTypeFont | None
    """Return the first installed font that has all letters of a text; None if there is none."""
    names: list[str | None] = [None, *_FONTS]
    if (matplotlib := find_spec("matplotlib")) and matplotlib.origin:
        names.insert(1, str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"))
    for name in names:
        try:
            font: Any = ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
        except OSError:
            continue
        missing = bytes(font.getmask("\uffff"))
        if all(bytes(font.getmask(letter)) != missing for letter in set(text)):
            return font
    return None


@functools.cache
def _report_letters() -> None:
    note("draw: no installed font has the letters of some classes' names: their numbers are drawn")
