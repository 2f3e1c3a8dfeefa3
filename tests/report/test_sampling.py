import io
import math
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcnzoo.export import Detections
from dcnzoo.layers import DCNv3, DCNv4, PackedDeformConv2d, PackedDeformConvTranspose2d
from dcnzoo.report import SamplingField, record_sampling
from dcnzoo.report.plots import plot_confusion, plot_curves, plot_precision_recall

KERNEL, STRIDE, PADDING, DILATION = (3, 2), (2, 1), (1, 2), (1, 3)
INPUT = (9, 11)
OUT = tuple((INPUT[i] + 2 * PADDING[i] - DILATION[i] * (KERNEL[i] - 1) - 1) // STRIDE[i] + 1 for i in (0, 1))


def make_field(offset=None, kernel=KERNEL, out=OUT, **kwargs):
    taps = math.prod(kernel)
    settings = {"stride": STRIDE, "padding": PADDING, "dilation": DILATION, "input_size": INPUT}
    return SamplingField(
        "layer",
        torch.zeros(taps, 2, *out) if offset is None else offset,
        torch.ones(taps, *out),
        kernel,
        **{**settings, **kwargs},
    )


def test_grid_is_where_a_convolution_samples():
    grid = make_field().grid
    coordinates = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in INPUT), indexing="ij")
    )
    # +1000 distinguishes coordinate 0 from the zeros of the padding
    padded = F.pad(coordinates + 1000, (PADDING[1],) * 2 + (PADDING[0],) * 2)
    for tap in range(6):
        weight = torch.zeros(1, 1, *KERNEL)
        weight.view(-1)[tap] = 1
        for axis in (0, 1):
            seen = F.conv2d(padded[None, axis : axis + 1], weight, stride=STRIDE, dilation=DILATION)
            inside = seen[0, 0] > 0
            assert inside.any()
            torch.testing.assert_close(grid[tap, axis][inside], seen[0, 0][inside] - 1000, rtol=0, atol=0)


class Pack(nn.Conv2d):
    def __init__(self, channels, groups, modulated):
        super().__init__(3, 4, KERNEL, STRIDE, PADDING, DILATION)
        self.deform_groups = groups
        self.conv_offset = nn.Conv2d(3, channels, KERNEL, STRIDE, PADDING, DILATION)

    def forward(self, x):
        return super().forward(x) + self.conv_offset(x).mean(1, keepdim=True)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("modulated", [False, True])
def test_recording_takes_the_first_image_and_group(groups, modulated):
    model = nn.Sequential(Pack((3 if modulated else 2) * 6 * groups, groups, modulated))
    x = torch.randn(2, 3, *INPUT)
    with record_sampling(model) as fields:
        model(x)
    model(x)  # outside the context: no sample
    (field,) = fields
    raw = model[0].conv_offset(x)[0].detach()
    assert (field.name, field.input_size, field.stride) == ("0", INPUT, STRIDE)
    assert field.offset.shape == (6, 2, *OUT)
    torch.testing.assert_close(field.offset[4, 1], raw[9])  # tap 4, x
    expected = raw[12 * groups + 4].sigmoid() if modulated else torch.ones(OUT)
    torch.testing.assert_close(field.weight[4], expected)


def test_packs_are_recorded_as_they_sample():
    arguments = (4, 6, KERNEL, STRIDE, PADDING, DILATION)
    pack = PackedDeformConv2d(*arguments, modulated=True, offset_groups=2, offset_limit=0.5, mask_groups=4)
    nn.init.normal_(pack.conv_offset.weight)
    model = nn.Sequential(pack, PackedDeformConvTranspose2d(6, 2, 2))  # the transposed layer does not sample
    x = torch.randn(2, 4, *INPUT)
    with record_sampling(model) as fields:
        model(x)
    (field,) = fields
    assert 0.4 < field.offset.abs().max() <= 0.5
    raw = pack.conv_offset(x)[0].detach()
    torch.testing.assert_close(field.offset[4, 1], 0.5 * (raw[9] / 0.5).tanh())
    torch.testing.assert_close(field.weight[4], raw[pack.offset_channels + 4].sigmoid())


@pytest.mark.parametrize("layer", [DCNv3, DCNv4])
@pytest.mark.parametrize("remove_center", [False, True])
def test_deform_attn_layers_are_recorded_as_they_sample(layer, remove_center):
    """Bilinear sampling with the recorded points and weights gives the layer's output of the first group."""
    options = {"stride": 2, "pad": 2, "dilation": 2, "group": 2, "offset_scale": 1.5}
    layer = layer(16, 3, **options, remove_center=remove_center)
    for predictor in ("offset", "mask", "offset_mask"):
        if hasattr(layer, predictor):
            nn.init.normal_(getattr(layer, predictor).weight, std=0.2)
    layer.output_proj = nn.Identity()
    x = torch.randn(2, *INPUT, 16)
    with record_sampling(layer) as fields, torch.no_grad():
        output = layer(x)[0, ..., :8]
        layer.dw_kernel_size is None and layer(x.flatten(1, 2), INPUT)  # a sequence has no samples
        value = getattr(layer, "input_proj" if isinstance(layer, DCNv3) else "value_proj")(x)[0, ..., :8]
    (field,) = fields
    assert (field.input_size, field.kernel_size, field.stride) == (INPUT, (3, 3), (2, 2))
    assert field.offset.shape == (9, 2, 5, 6) and field.offset.abs().mean() > 0.1
    height, width = torch.tensor(INPUT)
    y, x = field.points.unbind(1)  # [9, oH, oW]
    at = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    maps = value.permute(2, 0, 1).expand(9, -1, -1, -1)
    seen = F.grid_sample(maps, at, align_corners=False)  # [9, C, oH, oW]
    expected = (seen * field.weight[:, None]).sum(0).permute(1, 2, 0)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    # the taps have the order of a convolution: first the upper left one, then the one on its right
    ends = field.grid
    assert ends[1, :, 0, 0].tolist() == [-2, 0] and (field.weight[4] == 0).all() == remove_center
    assert torch.equal(field.points[4], ends[4]) == remove_center
    moved = field.points - ends
    assert (moved.mean((2, 3))[0] < 0).all() and moved.mean((2, 3))[5, 1] > 0, "offset_scale stretches"


def test_learning_curves_draw_seeds_and_mean():
    steps = np.arange(1, 6)
    two, one = np.array([[1.0] * 5, [3.0] * 5]), np.array([[4.0] * 5])
    figure = plot_curves("loss", {"off": (steps, two), "v2": (steps, one)})
    (axes,), (legend,) = figure.axes, figure.legends
    assert len(axes.lines) == (2 + 1) + (1 + 1) and axes.lines[2].get_ydata().tolist() == [2.0] * 5
    assert [t.get_text() for t in legend.get_texts()] == ["off", "v2"]
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= axes.get_window_extent().y0, "below the curves"
    assert figure.get_figwidth() * 96 <= 390 - 2 * 20 - 2 * 10 - 2, (
        "the width of a phone without the page's margins"
    )
    assert not plot_curves("AP", {"off": (steps, two)}).legends, "one arm needs none"


def test_curves_of_classes_and_confusion():
    names = ["_", "$5", r"\frac$x$", "果"]  # a hidden label and formulas of matplotlib; not in its font
    figure = plot_precision_recall("$", {name: np.full(101, 0.5) for name in names})
    svg = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(svg, format="svg")
    assert [f">{name}  0.50</text>" in svg.getvalue() for name in names] == [True] * 4
    styles = {(line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(styles) == 4, "not by colour alone"
    figure = plot_confusion("", np.array([[3, 1], [0, 0]]), ["a", "none"])
    assert figure.get_label().endswith("a: 3 of 4") and figure.axes[0].get_ylabel() == "ground truth"
    (image,) = figure.axes[0].images
    assert image.get_array().tolist() == [[0.75, 0.25], [0, 0]], "shares of a row"
    assert [(t.get_position(), t.get_text()) for t in figure.axes[0].texts] == [((0, 0), "3"), ((1, 0), "1")]


def test_charts_of_any_names_are_well_formed():
    svg = io.BytesIO()
    figure = plot_precision_recall("\x00", {name: np.full(101, 0.5) for name in ("a\x08b", "\udcff", "<b>")})
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(svg, format="svg")
    assert "&lt;b&gt;" in ElementTree.tostring(ElementTree.fromstring(svg.getvalue()), "unicode")


def test_names_outside_ascii_are_drawn():
    image = np.zeros((60, 60, 3), np.uint8)
    boxes, one = np.array([[10.0, 10, 50, 50]]), np.array([1.0])
    first, second = (
        np.asarray(Detections(boxes, one, np.array([0]), None, (name,), image).draw()) for name in "ЖШ"
    )
    assert (first != second).any(), "not the same box for every character"


def test_drawn_labels_do_not_cover_each_other_and_masks_show_the_object():
    masks = np.zeros((2, 60, 60), bool)
    masks[0, 10:50, 10:50] = True
    boxes = np.array([[10.0, 10, 50, 50]] * 2)
    image = np.full((60, 60, 3), 128, np.uint8)
    result = Detections(boxes, np.array([0.9, 0.8]), np.array([0, 1]), masks, ("a", "b"), image)
    pixels = np.asarray(result.draw()).astype(int)
    assert pixels.shape == (600, 600, 3)
    assert np.abs(pixels[350, 300] - 128).max() <= 20, "a tint"
    alone = [np.asarray(result[i].draw()).astype(int) for i in (0, 1)]
    labels = [(each[70:100, 100:130] == each[75, 102]).all(-1).sum() for each in alone]
    both = [(pixels == each[75, 102]).all(-1).sum() for each in alone]
    assert min(labels) > 100 and all(whole > label for whole, label in zip(both, labels, strict=True))
    assert not np.array_equal(pixels, np.asarray(result.draw(with_scores=False)))
    boxes = np.array([[40.0, 2, 55, 9], [5, 2, 15, 9]])
    result = Detections(boxes, result.scores, result.labels, None, ("a", "b"), image)
    beside, alone = (np.asarray(each.draw())[:, :300] for each in (result, result[1]))
    assert np.array_equal(beside, alone), "a label on the left of another stays at its box"
