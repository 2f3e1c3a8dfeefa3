"""An explanation as one HTML file: the sampling points of the place under the pointer."""

import base64
import io
import json

import numpy as np
import torch
from jinja2 import Environment
from markupsafe import Markup
from PIL import Image

from dcnzoo.visualization.explain import RAMP, Explanation, heat_map
from dcnzoo.visualization.sampling import SamplingField

_MOST_PER_AXIS = 64  # rows and columns of a layer's output that are kept
_SMALL = 256 * 256  # pixels of an image that is not worth a lossy compression

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff;
       max-width: 70rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; overflow-wrap: anywhere; }
main { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
#view { flex: 1 1 22rem; max-width: 36rem; background: #f3f4f6; cursor: crosshair; touch-action: none; }
#side { flex: 1 1 24rem; }
svg { width: 100%; height: auto; display: block; image-rendering: pixelated; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e5e7eb; }
th:first-child, td:first-child { text-align: left; overflow-wrap: break-word; }
thead th { color: #6b7280; }
tr.chosen { background: #ecfeff; }
label { margin-right: 1.2rem; }
#status { color: #374151; min-height: 3em; }
.scale { display: inline-block; width: 8rem; height: .7rem; margin: 0 .4rem;
         background: linear-gradient(90deg, {{ ramp[0] }}, {{ ramp[1] }}); }
footer { margin-top: 2rem; color: #6b7280; font-size: .85rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>Move over the image: the points are where the chosen layer reads for the output location nearest to
the pointer; the larger and redder, the more a point counts.</p>
<main>
<div id="view"></div>
<div id="side">
<p><label>layer <select id="layer"></select></label>
<label><input type="checkbox" id="heat"> receptive field of {{ explanation.layer }}</label></p>
<p>modulation 0<span class="scale"></span>{{ "%.3g"|format(explanation.largest_weight) }}</p>
<p id="status" role="status"></p>
<table>
<thead><tr>{% for head in table[0] %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>
</div>
</main>
<footer>{{ footer }}</footer>
<script type="application/json" id="data">{{ data }}</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
for (const layer of data.layers) {
  layer.points = new Int16Array(bytes(layer.points).buffer);
  layer.weights = bytes(layer.weights);
}
const svgNS = "http://www.w3.org/2000/svg";
function add(parent, name, attributes) {
  const element = document.createElementNS(svgNS, name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  return parent.appendChild(element);
}
const svg = add(document.getElementById("view"), "svg", {viewBox: `0 0 ${data.width} ${data.height}`});
const whole = {width: data.width, height: data.height};
add(svg, "image", {href: data.image, ...whole});
const heat = add(svg, "image", {href: data.heat, ...whole, visibility: "hidden"});
const marks = add(svg, "g", {});
const select = document.getElementById("layer"), status = document.getElementById("status");
data.layers.forEach((layer, i) => select.add(new Option(layer.name, i)));
const unit = Math.max(data.width, data.height) / 100;

// rows or columns that are kept, from the nearest to `low` to the nearest to `high`, both in image pixels
function kept(low, high, size, extent, stored, step) {
  const nearest = at => {
    const output = Math.min(Math.max(Math.round(at * size / extent), 0), size - 1);
    return Math.min(Math.round(output / step), stored - 1);
  };
  const first = nearest(low), count = nearest(high) - first + 1, shown = Math.min(count, 8);
  return Array.from({length: shown},
    (_, i) => first + (shown === 1 ? 0 : Math.round(i * (count - 1) / (shown - 1))));
}
function colour(strength) {
  const mix = data.ramp[0].map((low, i) => Math.round(low + (data.ramp[1][i] - low) * strength));
  return `rgb(${mix})`;
}
function show(box) {
  const layer = data.layers[select.value], [x1, y1, x2, y2] = box;
  marks.replaceChildren();
  // pixel centres are whole numbers here, and lie at half ones in the picture
  if (x1 === x2 && y1 === y2) {
    const arm = 2 * unit, x = x1 + .5, y = y1 + .5;
    add(marks, "path", {d: `M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}`,
                        stroke: "#22d3ee", "stroke-width": unit / 2});
  } else {
    add(marks, "rect", {x: x1 + .5, y: y1 + .5, width: x2 - x1, height: y2 - y1, fill: "none",
                        stroke: "#22d3ee", "stroke-width": unit / 2});
  }
  const rows = kept(y1, y2, layer.output[0], data.seen[0], layer.stored[0], layer.step);
  const columns = kept(x1, x2, layer.output[1], data.seen[1], layer.stored[1], layer.step);
  for (const row of rows) for (const column of columns) for (let tap = 0; tap < layer.taps; tap++) {
    const index = (row * layer.stored[1] + column) * layer.taps + tap;
    const strength = layer.weights[index] / 255;
    add(marks, "circle", {
      cx: layer.points[2 * index] * layer.quantum + .5, cy: layer.points[2 * index + 1] * layer.quantum + .5,
      r: unit * (.5 + 1.1 * Math.sqrt(strength)), fill: colour(strength), stroke: "#111827",
      "stroke-width": unit / 7, "data-weight": (strength * data.largestWeight).toFixed(3)});
  }
  const place = rows.length * columns.length === 1
    ? `output (y ${rows[0] * layer.step}, x ${columns[0] * layer.step}) of ${layer.output.join("×")}`
    : `${rows.length * columns.length} outputs in the box`;
  status.textContent = `${layer.name}: ${place}, ${layer.taps} points each`
    + (layer.step > 1 ? `; every ${layer.step}th output is kept` : "");
  document.querySelectorAll("tbody tr").forEach(
    (row, i) => row.classList.toggle("chosen", i === Number(select.value)));
}
let last = data.box;
svg.addEventListener("pointermove", event => {
  const frame = svg.getBoundingClientRect();
  const x = (event.clientX - frame.left) / frame.width * data.width - .5;
  const y = (event.clientY - frame.top) / frame.height * data.height - .5;
  show(last = [x, y, x, y]);
});
svg.addEventListener("pointerleave", () => show(last = data.box));
select.addEventListener("change", () => show(last));
document.getElementById("heat").addEventListener("change", event =>
  heat.setAttribute("visibility", event.target.checked ? "visible" : "hidden"));
// explain.html#layer=2&at=40,50&heat=1 opens with these
const asked = new URLSearchParams(location.hash.slice(1));
select.value = data.layers[asked.get("layer")] ? asked.get("layer") : data.chosen;
if (asked.get("heat")) document.getElementById("heat").click();
const at = (asked.get("at") || "").split(",").map(Number);
show(last = at.length === 2 && at.every(Number.isFinite) ? [...at, ...at] : data.box);
</script>
</body>
</html>
"""


def render_explanation(explanation: Explanation, title: str, footer: str = "") -> str:
    """The page as HTML, which needs nothing beside it; all text is escaped.

    Points are kept to a thirtieth of a pixel or so (``quantum`` in the page's data), modulation to a
    255th of the largest, and of the outputs of a layer at most 64 rows and 64 columns.
    """
    height, width = explanation.image.shape[:2]
    names = [field.name for field in explanation.fields]
    box = explanation.box
    data = {
        "image": _image_uri(explanation.image),
        "heat": _image_uri((heat_map(explanation.receptive_field) * 255).round().astype(np.uint8)),
        "width": width,
        "height": height,
        "seen": explanation.image_size,
        "box": [box.x1, box.y1, box.x2, box.y2],
        "ramp": [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in RAMP],
        "largestWeight": explanation.largest_weight,
        "chosen": names.index(explanation.layer),
        "layers": [_layer(field, explanation) for field in explanation.fields],
    }
    # inside of a script element only this one could end it
    script = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            title=title,
            explanation=explanation,
            table=explanation.table(),
            ramp=RAMP,
            data=Markup(script),  # nosec B704  # JSON without "<"
            footer=footer,
        )
    )


def _layer(field: SamplingField, explanation: Explanation) -> dict:
    height, width = field.weight.shape[-2:]
    step = -(-max(height, width) // _MOST_PER_AXIS)
    size = torch.tensor(explanation.image_size)
    scale = size / torch.tensor(field.input_size)
    points = (field.points * scale[:, None, None])[..., ::step, ::step]  # [K, 2, rows, columns], (y, x)
    far = size.flip(0)  # what lies further away than this is as far as it need be
    points = points.permute(2, 3, 0, 1).flip(-1)  # [rows, columns, K, 2], (x, y)
    points = torch.minimum(torch.maximum(points, -far), 2 * far)
    quantum = max(1 / 32, 2 * int(far.max()) / 32767)
    weights = field.weight[:, ::step, ::step].permute(1, 2, 0).abs() / explanation.largest_weight
    return {
        "name": field.name,
        "output": [height, width],
        "stored": list(points.shape[:2]),
        "step": step,
        "taps": points.shape[2],
        "quantum": quantum,
        "points": _base64((points / quantum).round().numpy().astype("<i2")),
        "weights": _base64((weights * 255).round().numpy().astype(np.uint8)),
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _image_uri(pixels: np.ndarray) -> str:
    """PNG for what is small or transparent, else JPEG."""
    lossless = pixels.shape[2] == 4 or pixels.shape[0] * pixels.shape[1] <= _SMALL
    buffer, kind = io.BytesIO(), "png" if lossless else "jpeg"
    Image.fromarray(pixels).save(buffer, kind, **({} if lossless else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
