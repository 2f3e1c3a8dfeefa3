"""Self-contained HTML pages: no separate style sheets or images, no network.

``templates/base.html`` contains the head and the styles of all pages; ``report.html`` and ``explain.html``
contain the rest. The functions of this module return HTML for the sections of a report.
"""

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from dcnzoo.report.plots import any_letters

_SMALL = 256 * 256  # pixels; smaller images are stored losslessly
_DPI = 150  # of figures with photos
_QUALITY = {"quality": 88}  # of JPEG
_ENVIRONMENT = Environment(
    loader=PackageLoader("dcnzoo.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_PARTS: Any = _ENVIRONMENT.get_template("parts.html").module

table, fold = _PARTS.table, _PARTS.fold
pictures = _PARTS.pictures  # shows Pictures in a row; kind "small": in several rows
columns = _PARTS.columns  # shows parts side by side if there is room


def in_words(names: Iterable[str]) -> str:
    """Count objects by class, as text of the page: browsers have fonts of any script for it."""
    counts = Counter(names).most_common()
    return ", ".join(f"{count} × {name}" for name, count in counts) or "no objects"


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and HTML parts that functions of this module returned."""

    title: str
    text: str
    parts: Sequence[Markup]


def render(template: str, **values: object) -> str:
    """Render a template of ``templates/``; all text is escaped, also characters that UTF-8 cannot encode."""
    text = _ENVIRONMENT.get_template(template).render(**values)
    return text.encode(errors="backslashreplace").decode()


@dataclasses.dataclass(frozen=True)
class Picture:
    """A photo.

    Attributes:
        content: a photo, or a figure without texts: browsers draw the caption in any script and size.
        caption: below the picture.
        alt: a description of the picture that adds to the caption.
    """

    content: Figure | Image.Image
    caption: str
    alt: str

    @property
    def uri(self) -> str:
        if isinstance(self.content, Image.Image):
            return image_uri(np.asarray(self.content))
        return _uri("jpeg", self.content.savefig, format="jpeg", dpi=_DPI, pil_kwargs=_QUALITY)


@any_letters()
def charts(figures: Sequence[Figure]) -> Markup:
    """Place charts side by side if there is room; their labels describe them."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        options = {"metadata": {"Date": None, "Creator": None}}
        uris = [_uri("svg+xml", figure.savefig, format="svg", **options) for figure in figures]
    return _PARTS.charts(list(zip(uris, (figure.get_label() for figure in figures), strict=True)))


def image_uri(pixels: np.ndarray) -> str:  # [H, W, 3 or 4], uint8
    """Encode an image as a data URI: PNG if it is small or transparent, else JPEG."""
    lossless = pixels.shape[2] == 4 or pixels.shape[0] * pixels.shape[1] <= _SMALL
    kind = "png" if lossless else "jpeg"
    return _uri(kind, Image.fromarray(pixels).save, format=kind, **({} if lossless else _QUALITY))


def _uri(kind: str, save: Callable, **options: object) -> str:
    buffer = io.BytesIO()
    save(buffer, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
