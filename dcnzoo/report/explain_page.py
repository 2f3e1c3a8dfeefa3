"""The page of an explanation: a picture whose sampling points follow the pointer."""

import base64
import json

import cv2
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

from dcnzoo.report.explain import Explanation, offset_table
from dcnzoo.report.page import image_uri, render
from dcnzoo.report.plots import RAMP
from dcnzoo.report.sampling import SamplingField

_HEAT = LinearSegmentedColormap.from_list("heat", ["#1d4ed800", "#06b6d4a0", "#fde047e0", "#ffffff"])
_MOST_IN_PAGE = 64  # rows and columns of a layer's output in the page
# most pixels on the longer side of the image in the page, and of a receptive field, which is smoothed
_SIDE, _HEAT_SIDE = 1600, 256


def heat_map(field: Tensor) -> np.ndarray:  # [H, W] -> [H, W, 4], in 0…1
    """Colour a receptive field: smoothed by 1 % of the longer side, on a square-root scale."""
    sigma = max(1.0, max(field.shape) / 100)
    smoothed = cv2.GaussianBlur(field.numpy(), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    return _HEAT(np.sqrt(smoothed / max(smoothed.max(), 1e-30)))


def render_explanation(explanation: Explanation, title: str, footer: str = "") -> str:
    """Render a self-contained HTML page; all text is escaped.

    Precision: offsets 1/65,000 of the layer's largest, modulation 1/255 of the largest. The page contains at
    most 64 rows and 64 columns of each layer's output, and the image with at most 1,600 pixels per side.
    """
    (height, width), frame = explanation.image.shape[:2], explanation.frame
    names = [field.title for field in explanation.fields]
    x, y = (sum(explanation.box[i::2]) / 2 for i in (0, 1))
    heats = {(x, y): explanation.receptive_field, **explanation.further}
    shown = {at: (heat_map(field) * 255).round().astype(np.uint8) for at, field in heats.items()}
    data = {
        "image": image_uri(_shrunk(explanation.image, _SIDE)),
        "heats": [{"at": at, "uri": image_uri(_shrunk(heat, _HEAT_SIDE))} for at, heat in shown.items()],
        "width": width,
        "height": height,
        "seen": frame.size,
        "scale": frame.scale,
        "box": explanation.box,
        "ramp": [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in RAMP],
        "objects": explanation.objects,
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
        table=offset_table(explanation.fields, explanation.statistics),
        ramp=RAMP,
        data=Markup(script),  # nosec B704  # JSON without "<"
        footer=footer,
    )


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Resize an image whose longer side is larger than ``side`` pixels."""
    scale = side / max(image.shape)
    if scale >= 1:
        return image
    size = [max(1, round(scale * n)) for n in (image.shape[1], image.shape[0])]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _layer(field: SamplingField, explanation: Explanation) -> dict:
    height, width = field.weight.shape[-2:]
    step = -(-max(height, width) // _MOST_IN_PAGE)
    size = torch.tensor(field.input_size)[:, None, None]
    # points further outside than one image size are clipped
    offset = torch.minimum(torch.maximum(field.points, -size), 2 * size) - field.grid
    offset = offset[..., ::step, ::step].permute(2, 3, 0, 1)  # [rows, columns, K, 2], (y, x)
    quantum = max(float(offset.abs().max()), 1e-3) / 32767
    weights = field.weight[:, ::step, ::step].permute(1, 2, 0).abs() / explanation.largest_weight
    return {
        "name": field.title,
        "input": field.input_size,
        "output": [height, width],
        "stored": list(offset.shape[:2]),
        "step": step,
        **{name: getattr(field, name) for name in ("kernel_size", "stride", "padding", "dilation")},
        "quantum": quantum,
        "offsets": _base64((offset / quantum).round().numpy().astype("<i2")),
        "weights": _base64((weights * 255).round().numpy().astype(np.uint8)),
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
