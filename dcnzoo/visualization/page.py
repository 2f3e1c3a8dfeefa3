"""A report as one HTML file that needs nothing beside it: no script, no style sheet, no image."""

import base64
import dataclasses
import io
from collections.abc import Sequence

from jinja2 import Environment
from matplotlib.figure import Figure

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p { max-width: 46rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem 1.1rem; text-align: right; border-bottom: 1px solid #e5e7eb; }
th:first-child, td:first-child { text-align: left; }
thead th { color: #6b7280; font-weight: 600; }
img { max-width: 100%; height: auto; }
footer { margin-top: 2.5rem; color: #6b7280; font-size: .85rem; white-space: pre-wrap; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
<table>
<thead><tr>{% for head in table[0] %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>
{% for section in sections %}<h2>{{ section.title }}</h2>
<p>{{ section.text }}</p>
<img src="{{ section.image }}" alt="{{ section.title }}">
{% endfor %}<footer>{{ footer }}</footer>
</body>
</html>
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, a paragraph and a picture; ``image`` is a data URI: :func:`data_uri`."""

    title: str
    text: str
    image: str


def data_uri(figure: Figure, dpi: int = 110) -> str:
    """A figure as a PNG inside its own address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def render_page(
    title: str,
    lead: str,
    table: Sequence[Sequence[str]],  # the first row is the head
    sections: Sequence[Section],
    footer: str = "",
) -> str:
    """The page as HTML; all text is escaped."""
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(title=title, lead=lead, table=table, sections=sections, footer=footer)
