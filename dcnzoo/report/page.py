"""Self-contained HTML pages: no separate style sheets or images, no network.

``templates/base.html`` contains the head and the styles of all pages; ``report.html`` and ``explain.html``
contain the rest. The functions of this module return HTML for the sections of a report.
"""

import base64
import dataclasses
import io
import itertools
import re
from collections.abc import Mapping, Sequence

import cv2
import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from dcnzoo.report.plots import THEME, Instances

_SMALL = 256 * 256  # pixels; smaller images are stored losslessly
THRESHOLD = 0.5  # of the score, where the page's slider starts
_LARGEST = 640  # pixels; maximum of the longer side of an image
_ENVIRONMENT = Environment(
    loader=PackageLoader("dcnzoo.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_PARTS = _ENVIRONMENT.get_template("parts.html").module
_numbers = itertools.count()

table, fold, grid = _PARTS.table, _PARTS.fold, _PARTS.grid


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and HTML parts that functions of this module returned."""

    title: str
    text: str
    parts: Sequence[Markup]


def render_report(
    title: str,
    lead: str,
    sections: Sequence[Section],
    facts: Mapping[str, str] | None = None,
    footer: str = "",
) -> str:
    """Render a report as HTML; all text is escaped.

    Args:
        facts: name → value, shown in large type at the top.
    """
    return render("report.html", title=title, lead=lead, sections=sections, facts=facts, footer=footer)


def render(template: str, **values: object) -> str:
    """Render a template of ``templates/``."""
    return _ENVIRONMENT.get_template(template).render(**values)


def text(content: str) -> Markup:
    """Format text and keep its line breaks."""
    return _PARTS.text(content)


def charts(figures: Sequence[Figure]) -> Markup:
    """Place figures side by side if there is room; they use the page's fonts and colours."""
    return _PARTS.charts([_inline_svg(figure) for figure in figures])


def _inline_svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    prefix = f"chart{next(_numbers)}-"  # ids must be unique on the page
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    for colour, name in THEME.items():
        svg = re.sub(re.escape(colour), f"var(--{name})", svg, flags=re.IGNORECASE)
    return Markup(svg)  # nosec B704  # matplotlib has escaped the text in it


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that a page contains once and can show several times.

    :func:`image` embeds it; the other functions refer to it.

    Attributes:
        image: [H, W, 3], uint8, RGB.
    """

    image: np.ndarray
    id: str = dataclasses.field(default_factory=lambda: f"image{next(_numbers)}")

    @property
    def height(self) -> int:
        return self.image.shape[0]

    @property
    def width(self) -> int:
        return self.image.shape[1]

    @property
    def unit(self) -> float:
        """A length that looks equal on every image: about three points."""
        return round(max(self.image.shape[:2]) / 100, 2)

    @property
    def uri(self) -> str:
        scale = _LARGEST / max(self.image.shape[:2])
        size = (max(1, round(self.width * scale)), max(1, round(self.height * scale)))
        small = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA) if scale < 1 else self.image
        return image_uri(small)


def image(picture: Picture) -> Markup:
    return _PARTS.image(picture)


def instances(
    picture: Picture,
    found: Instances,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> Markup:
    """Draw boxes, outlines and names on a picture.

    The page's script hides instances by score and moves names that overlap.
    """
    drawn = []
    titles, scores, unit = found.titles(classes), found.scores, picture.unit
    for i in range(len(titles)) if scores is None else np.argsort(scores):  # the best on top
        x0, y0, x1, y1 = (round(float(value), 1) for value in found.boxes[i])
        end = picture.width - 2.6 * unit * len(titles[i])  # letters are about 2.6 units wide
        one = {
            "box": (x0, y0, round(x1 - x0, 1), round(y1 - y0, 1)),
            "colour": "rgb({}, {}, {})".format(*palette[found.labels[i]]),
            "score": None if scores is None else float(scores[i]),
            "title": titles[i],
            "text": (max(min(x0 + unit, end), 0), max(y0 - unit, 4 * unit)),
            "outline": "" if found.masks is None else _outline(found.masks[i]),
        }
        drawn.append(one)
    return _PARTS.instances(picture, drawn)


def _outline(mask: np.ndarray) -> str:  # [H, W], bool
    """Return the path around a mask; a pixel is a square that starts at its upper left corner."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    tolerance = max(mask.shape) / 1000
    path = []
    for contour in contours:
        if len(contour) > 2:
            points = cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0] + 0.5
            path.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "Z")
    return "".join(path)


def sampling_points(
    picture: Picture,
    points: np.ndarray,  # [M, 2], (y, x), in pixels of the picture; pixel centres are integers
    weight: np.ndarray,  # [M], drawn as opacity
    place: tuple[float, float],  # (y, x)
) -> Markup:
    """Draw the sampling points of a position on a picture; a cross marks the position."""
    strength = 0.15 + 0.85 * np.abs(weight) / max(np.abs(weight).max(), 1e-12)
    rows = [
        (f"{x + 0.5:.2f}", f"{y + 0.5:.2f}", f"{opacity:.2f}")
        for (y, x), opacity in zip(points.tolist(), strength.tolist(), strict=True)
    ]
    return _PARTS.points(picture, {"points": rows, "y": place[0] + 0.5, "x": place[1] + 0.5})


def slider(threshold: float) -> Markup:
    """Return a slider for the score below which the instances of its section are hidden."""
    return Markup(
        '<label class="control">score at least <input type="range" data-threshold min="0.05" max="0.95" '
        'step="0.05" value="{}"><output></output></label>'
    ).format(threshold)


def image_uri(pixels: np.ndarray) -> str:  # [H, W, 3 or 4], uint8
    """Encode an image as a data URI: PNG if it is small or transparent, else JPEG."""
    lossless = pixels.shape[2] == 4 or pixels.shape[0] * pixels.shape[1] <= _SMALL
    buffer, kind = io.BytesIO(), "png" if lossless else "jpeg"
    Image.fromarray(pixels).save(buffer, kind, **({} if lossless else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
