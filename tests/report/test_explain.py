"""Explanations of a detector: receptive fields computed by hand, and a page with the recorded points."""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcnzoo.layers import DCNv3, DCNv4, PackedDeformConv2d
from dcnzoo.layers.statistics import (
    modulation_statistics,
    offset_statistics,
    track_offsets,
)
from dcnzoo.report.explain import (
    Box,
    explain_network,
    grid_of_points,
    heat_map,
    output_window,
    points_of,
    record,
    render_explanation,
    with_unique_names,
)
from dcnzoo.report.receptive_field import receptive_fields
from dcnzoo.report.sampling import Frame
from dcnzoo.utils.errors import UserError
from tests.helpers.explained import STRIDE, decoded, explained, make_model, page_data

SIZE = (24, 36)


def by_hand(model, rows, columns, shift=(0, 0)):
    """Compute the gradient of ordinary convolutions by transposed convolutions of ones at the outputs."""
    out = torch.zeros(1, 5, 12, 12)
    out[:, :, rows, columns] = 1
    padded = F.conv_transpose2d(out, model[1].weight, stride=STRIDE)  # of the map padded by (1, 2)
    grown = torch.zeros(1, 4, SIZE[0] + 80, SIZE[1] + 80)
    top, left = 40 - 1 + shift[0], 40 - 2 + shift[1]
    grown[:, :, top : top + padded.shape[2], left : left + padded.shape[3]] = padded
    hidden = grown[:, :, 40:-40, 40:-40]  # samples outside the map are lost
    return F.conv_transpose2d(hidden, model[0].weight, padding=1)[0].detach().norm(dim=0)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-20, 0)])
@pytest.mark.parametrize("window", [(slice(5, 6), slice(7, 8)), (slice(0, 3), slice(9, 12))])
def test_receptive_field_is_that_of_convolutions_that_are_moved(shift, window):
    model = make_model([float(s) for s in shift])
    with torch.no_grad():
        (found,) = receptive_fields(model, model, torch.randn(1, 3, *SIZE), "1", [window])
    assert model[0].weight.grad is None and not model[1]._forward_hooks
    expected = by_hand(model, *window, shift)
    assert found.shape == SIZE
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(found == 0, expected == 0), "nothing where the points do not reach"
    if shift == (0, 0) and window[0] == slice(5, 6):
        ys, xs = (found > 0).nonzero().unbind(1)
        # 3×5 taps around (5·2, 7·3), plus one pixel for the first convolution
        assert (ys.min(), ys.max(), xs.min(), xs.max()) == (8, 12, 18, 24)


def test_receptive_field_of_a_second_call():
    """A head runs on two levels. The first call's receptive field excludes the second level's pixels."""
    head = nn.Conv2d(3, 2, 3, padding=1)
    model = nn.ModuleDict({"head": head})

    def run(x):
        head(x[..., :10]), head(x[..., 20:])

    x, window = torch.randn(1, 3, *SIZE), (slice(4, 5), slice(4, 5))
    (first,) = receptive_fields(model, run, x, "head", [window])
    (second,) = receptive_fields(model, run, x, "head #2", [window])
    assert torch.equal(first.roll(20, 1), second) and first.count_nonzero() == 9
    with pytest.raises(ValueError, match="head"):
        receptive_fields(model, run, x, "head #3", [window])
    for cut in (lambda x: run(x.detach()), torch.no_grad()(run)):
        with pytest.raises(ValueError, match=r"gradient.*head"):
            receptive_fields(model, cut, x, "head", [window])


@pytest.mark.parametrize("layer", [DCNv3, DCNv4])
def test_receptive_field_of_maps_with_channels_last(layer):
    layer = layer(8, group=2)
    if isinstance(layer, DCNv4):
        layer.offset_mask.bias.data[18:27] = 1.0  # the first group's mask, which starts at zero

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.point, self.layer = nn.Conv2d(3, 8, 1), layer

        def forward(self, x):
            return self.layer(self.point(x).permute(0, 2, 3, 1))

    model = Network()
    inputs, window = torch.randn(1, 3, 9, 14), (slice(3, 4), slice(5, 6))
    found, other = receptive_fields(model, model, inputs, "layer", [window, (slice(6, 7), slice(9, 10))])
    assert other.count_nonzero() == 9 and other[5:8, 8:11].all()
    ys, xs = found.nonzero().unbind(1)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (2, 4, 4, 6), "3×3 around (3, 5)"


def test_statistics_are_as_before_after_the_recording():
    model, input = nn.Sequential(PackedDeformConv2d(3, 4, 3, padding=1)), torch.randn(1, 3, 8, 8)
    _, fields, statistics = record(model, lambda: [model(input)])
    assert [field.name for field in fields] == list(statistics) == ["0"]
    assert not model[0].track_offsets and not offset_statistics(model)
    track_offsets(model)
    model(2 * input)
    before = offset_statistics(model), modulation_statistics(model)
    record(model, lambda: [model(input)])
    assert model[0].track_offsets and before == (offset_statistics(model), modulation_statistics(model))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_network(channels):
    model = make_model((1.0, -2.0))
    model[0] = nn.Conv2d(channels, 4, 3, padding=1, bias=False)
    model.train()
    model[2].eval()
    picture = torch.randn(1, channels, *SIZE)
    explanation = explain_network(model, picture, Box(21, 10, 21, 10), further=4)
    rows, columns = output_window(explanation.fields[0], Box(21, 10, 21, 10), Frame(SIZE))
    torch.testing.assert_close(
        explanation.receptive_field, by_hand(model, rows, columns, (1, -2)), atol=1e-6, rtol=1e-5
    )
    assert explanation.statistics["1"][:2] == pytest.approx((1.5, 2))
    assert model.training and model[1].training and not model[2].training, "the mode is restored"
    assert explanation.image.shape == (*SIZE, 3) and explanation.image.min() == 0
    assert explanation.further and "any network" in render_explanation(explanation, "any network")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"inputs": torch.zeros(3, 9, 9)}, "inputs: "),
        ({"inputs": torch.zeros(2, 3, 9, 9)}, "inputs: "),
        ({"inputs": "picture.jpg"}, "inputs: "),
        ({"box": Box(0, 0, 99, 3)}, "box: "),
        ({"layer": "nope"}, "layer: "),
        ({"model": nn.Conv2d(3, 3, 1)}, "model: "),
    ],
)
def test_any_network_with_wrong_arguments(arguments, named):
    with pytest.raises(UserError, match=named):
        explain_network(**{"model": make_model(), "inputs": torch.zeros(1, 3, *SIZE), **arguments})


def test_heat_map_of_one_pixel_and_of_none():
    field = torch.zeros(31, 401)
    field[10, 200] = 3
    opacity = heat_map(field)[..., 3]
    assert opacity.argmax() == 10 * 401 + 200 and opacity[10, 200] == 1
    assert opacity[10, 204] > opacity[10, 208] > 0 == opacity[10, 230]  # smoothed by 4 pixels
    assert np.isfinite(heat_map(torch.zeros(5, 7))).all()


def test_a_box_has_its_outputs_or_some_of_many():
    explanation = explained()
    (field,) = explanation.fields
    points, weight = points_of(field, explanation.box, explanation.frame)
    torch.testing.assert_close(points, field.points[:, :, 5, 7])
    assert torch.equal(weight, torch.ones(15))
    assert output_window(field, Box(3, 4, 9.2, 4), Frame(SIZE)) == (slice(2, 3), slice(1, 4))
    points, _ = points_of(field, Box(3, 4, 9.2, 4), Frame(SIZE))
    torch.testing.assert_close(points[15:30], field.points[:, :, 2, 2])
    names = [f.name for f in with_unique_names(explained(names=("a", "b", "a", "a")).fields)]
    assert names == ["a", "b", "a #2", "a #3"]
    points, _ = points_of(field, Box(0, 0, 35, 23), Frame(SIZE))
    assert len(points) == 8 * 8 * 15
    torch.testing.assert_close(points[:15], field.points[:, :, 0, 0])
    torch.testing.assert_close(points[-15:], field.points[:, :, 11, 11])


@pytest.mark.parametrize("scale", [(2.5, 1.5), (0.5, 0.25)])
def test_positions_are_pixels_of_the_picture(scale):
    """Without offsets, the mean of a layer's points is the output's centre: nearest to the position."""
    explanation = explained(scale=scale)
    (field,), frame = explanation.fields, explanation.frame
    y, x = 8.0 * scale[0], 20.0 * scale[1]
    field = dataclasses.replace(field, offset=torch.zeros_like(field.offset))
    points, _ = points_of(field, Box(x, y, x, y), frame)
    distance = (points.mean(0) - torch.tensor([y, x])).abs() / torch.tensor(scale)
    assert (distance <= torch.tensor(STRIDE) / 2 + 1e-4).all()
    for place in grid_of_points(field, explanation.image.shape[:2], frame, 12):
        rows, columns = output_window(field, place, frame)
        assert rows.start * STRIDE[0] == pytest.approx((place.y1 + 0.5) / scale[0] - 0.5, abs=1e-4)
        assert columns.start * STRIDE[1] == pytest.approx((place.x1 + 0.5) / scale[1] - 0.5, abs=1e-4)


def test_table_of_layers():
    rows = explained(names=("1", "of mmcv")).table()
    assert rows[1] == ["1", "12×12", "0.250", "2.50", "12.5%"]
    assert rows[2][:2] == ["of mmcv", "12×12"] and rows[2][4] == "–"
    assert rows[3] == ["other", "not drawn", "1.000", "2.00", "0.0%"]


def test_places_are_outputs_in_the_visible_image():
    (field,) = explained().fields
    assert grid_of_points(field, SIZE, Frame(SIZE), 0) == []
    boxes = grid_of_points(field, (20, 30), Frame(SIZE), 6)
    # 2 × 3 centres of equal parts of 20 × 30, moved to outputs, which are (2, 3) pixels apart
    assert {(box.y1, box.x1) for box in boxes} == {(y, x) for y in (4, 16) for x in (6, 15, 24)}
    assert len(grid_of_points(field, SIZE, Frame(SIZE), 1000)) == 144, "not an output twice"


@pytest.mark.parametrize(("outputs", "step"), [((12, 12), 1), ((20, 70), 2)])
def test_page_holds_the_recorded_points(outputs, step):
    explanation = explained(outputs)
    page = render_explanation(explanation, "A < B", "end")
    assert "A &lt; B" in page and len(page) < 300_000
    assert not re.findall(r'(?:src|href)="|url\(|https?://(?!www\.w3\.org/2000/svg)', page), "self-contained"
    (layer,) = page_data(page)["layers"]
    assert layer["step"] == step and layer["output"] == list(outputs)
    offsets, weights = decoded(layer)
    expected = explanation.fields[0].offset[:, :, ::step, ::step].permute(2, 3, 0, 1).numpy()
    assert np.abs(offsets - expected).max() <= layer["quantum"] / 2 + 1e-5 < 1e-3
    assert (weights == 1).all()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.5, 1.5), (0.5, 0.25)])
def test_the_page_computes_the_sampled_pixels_of_the_picture(scale):
    """The convolution of a page's points, by the operator's own definition, resized as OpenCV resizes."""
    explanation = explained(scale=scale)
    page = render_explanation(explanation, "title")
    program = re.search(r'<script id="positions">(.*?)</script>', page, re.DOTALL)[1]
    program += """
    const data = decode(JSON.parse(require("fs").readFileSync(0, "utf8")));
    const layer = data.layers[0], points = [];
    for (let row = 0; row < 12; row++) for (let column = 0; column < 12; column++)
      for (let tap = 0; tap < 15; tap++) {
        const {x, y} = sample(data, layer, row, column, tap);
        points.push([x, y]);
      }
    console.log(JSON.stringify(points));"""
    output = subprocess.run(
        ["node", "-e", program], input=json.dumps(page_data(page)), capture_output=True, text=True, check=True
    ).stdout
    (field,) = explanation.fields
    row, column, tap_y, tap_x = np.meshgrid(*map(np.arange, (12, 12, 3, 5)), indexing="ij")
    offset = field.offset.numpy().reshape(3, 5, 2, 12, 12).transpose(2, 3, 4, 0, 1)
    y, x = row * 2 - 1 + tap_y + offset[0], column * 3 - 2 + tap_x + offset[1]  # pixels of the input
    expected = np.stack([(x + 0.5) * scale[1] - 0.5, (y + 0.5) * scale[0] - 0.5], -1).reshape(-1, 2)
    np.testing.assert_allclose(json.loads(output), expected, atol=1e-3)


def test_names_and_runaway_offsets_do_not_spoil_the_page():
    explanation = explained(names=("</script><b>",))
    explanation.fields[0].offset[3, 0, 2, 2] = 1e9
    page = render_explanation(explanation, "not UTF-8: \udcff")
    assert "UTF-8: \\udcff" in page and page.encode()
    (layer,) = page_data(page)["layers"]
    assert layer["name"] == "</script><b>"
    assert decoded(layer)[0].max() <= 2 * max(SIZE)
