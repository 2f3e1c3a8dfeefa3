"""An explanation as one HTML file that shows the sampling points for the position under the pointer."""

import base64
import json

import numpy as np
import torch
from markupsafe import Markup

from dcnzoo.report.explain import Explanation, heat_map
from dcnzoo.report.page import image_uri, render
from dcnzoo.report.plots import RAMP
from dcnzoo.report.sampling import SamplingField

_MOST_PER_AXIS = 64  # maximum of rows and columns of a layer's output in the page


def render_explanation(explanation: Explanation, title: str, footer: str = "") -> str:
    """Render a self-contained HTML page; all text is escaped.

    Precision: points about 1/30 pixel (``quantum`` in the page's data), modulation 1/255 of the largest. The
    page contains at most 64 rows and 64 columns of each layer's output.
    """
    height, width = explanation.image.shape[:2]
    names = [field.name for field in explanation.fields]
    box = explanation.box
    data = {
        "image": image_uri(explanation.image),
        "heat": image_uri((heat_map(explanation.receptive_field) * 255).round().astype(np.uint8)),
        "width": width,
        "height": height,
        "seen": explanation.image_size,
        "box": [box.x1, box.y1, box.x2, box.y2],
        "ramp": [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in RAMP],
        "largestWeight": explanation.largest_weight,
        "chosen": names.index(explanation.layer),
        "layers": [_layer(field, explanation) for field in explanation.fields],
    }
    # only "<" could end the script element
    script = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return render(
        "explain.html",
        title=title,
        explanation=explanation,
        table=explanation.table(),
        ramp=RAMP,
        data=Markup(script),  # nosec B704  # JSON without "<"
        footer=footer,
    )


def _layer(field: SamplingField, explanation: Explanation) -> dict:
    height, width = field.weight.shape[-2:]
    step = -(-max(height, width) // _MOST_PER_AXIS)
    size = torch.tensor(explanation.image_size)
    scale = size / torch.tensor(field.input_size)
    points = (field.points * scale[:, None, None])[..., ::step, ::step]  # [K, 2, rows, columns], (y, x)
    far = size.flip(0)  # clip points further outside than one image size
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
