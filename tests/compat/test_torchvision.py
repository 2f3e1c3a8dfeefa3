"""``dcnzoo.compat.torchvision``: torchvision's signatures and results, and errors for wrong shapes.

``DeformConv2d`` is that of ``dcnzoo.layers``: test_layers.py.
"""

import sys

import pytest
import torch

import dcnzoo.ops.reference as reference
from dcnzoo.compat.torchvision import RoIAlign, accelerate, deform_conv2d, restore, roi_align

from ..modules import assert_same

GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
OUT = (5, 9)


def tensors(groups=2, offset_groups=2, dtype=torch.float64):
    """input (3, 4, 9, 7), offset, weight (6, 4 / groups, 3, 2), bias, mask."""
    torch.manual_seed(0)
    return (
        torch.randn(3, 4, 9, 7, dtype=dtype),
        torch.randn(3, offset_groups * 12, *OUT, dtype=dtype) * 2,
        torch.randn(6, 4 // groups, 3, 2, dtype=dtype),
        torch.randn(6, dtype=dtype),
        torch.rand(3, offset_groups * 6, *OUT, dtype=dtype),
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_deform_conv2d(groups, with_mask, with_bias):
    """``nox -s others`` compares with torchvision itself, signatures included."""
    input, offset, weight, bias, mask = tensors(groups)
    weight, bias = weight[:4], bias[:4] if with_bias else None
    mask = mask if with_mask else None
    leaves = [t.requires_grad_() for t in (input, offset, weight, bias, mask) if t is not None]
    output = deform_conv2d(input, offset, weight, bias, **GEOMETRY, mask=mask)
    expected = reference.deform_conv(input, weight, offset, mask, bias, *GEOMETRY.values(), groups)
    assert_same(output, expected, leaves)
    offset, mask = offset[..., :4].contiguous(), mask[..., :4].contiguous() if with_mask else None
    output = deform_conv2d(input, offset, weight, bias, 2, 1, 1, mask)  # integers, by position
    expected = reference.deform_conv(input, weight, offset, mask, bias, (2, 2), (1, 1), (1, 1), groups)
    torch.testing.assert_close(output, expected)


def test_roi_align_of_one_size_without_boxes_and_of_bad_ones():
    input, boxes = maps_and_boxes()
    assert roi_align(input, boxes, 4).shape == (5, 2, 4, 4)
    input.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, boxes, 2, 0.5), input, fast_mode=True)
    assert roi_align(input, [torch.zeros(0, 4, dtype=torch.float64)] * 3, 2).shape == (0, 2, 2, 2)
    assert roi_align(input[:0], [], 2).shape == (0, 2, 2, 2)
    for wrong, message in (
        (boxes[:2], "got 2"),
        ([boxes[0], torch.zeros(0, 5), boxes[2]], r"image 1, .*5\)"),
    ):
        with pytest.raises(RuntimeError, match=f"roi_align: boxes: .*{message}"):
            roi_align(input, wrong, 2)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("weight", (6, 3, 3, 2), "got 3 .*order is input"),
        ("weight", (6, 0, 3, 2), "got 0"),
        ("weight", (6, 2, 3), "4 dimensions"),
        ("input", (4, 9, 7), "4 dimensions"),
        ("offset", (3, 23, *OUT), "12 channels .* got 23"),
        ("offset", (3, 24, 5, 8), r"\(5, 9\).*got \(5, 8\)"),
        ("mask", (3, 24, *OUT, 1), "4 dimensions"),
        ("bias", (5,), r"\(6,\), got \(5,\)"),
    ],
)
def test_bad_input(name, shape, message):
    given = dict(zip(("input", "offset", "weight", "bias", "mask"), tensors(), strict=True))
    given[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"{name}: expected .*{message}"):
        deform_conv2d(**given, **GEOMETRY)


def test_scripted():
    input, offset, weight, bias, mask = tensors()
    scripted = torch.jit.script(deform_conv2d)
    geometry = tuple(GEOMETRY.values())
    expected = deform_conv2d(input, offset, weight, bias, *geometry, mask)
    assert torch.equal(scripted(input, offset, weight, bias, *geometry, mask), expected)


# RoIAlign


def maps_and_boxes(dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    input = torch.randn(3, 2, 9, 12, dtype=dtype, generator=generator)
    boxes = [torch.rand(count, 4, dtype=dtype, generator=generator) * 12 for count in (2, 0, 3)]
    return input, [torch.cat([b[:, :2].minimum(b[:, 2:]), b[:, :2].maximum(b[:, 2:])], 1) for b in boxes]


@pytest.mark.parametrize("aligned", [None, False, True])
@pytest.mark.parametrize("samples", [None, 0, 2])
def test_roi_align(aligned, samples):
    input, boxes = maps_and_boxes()
    given = {"aligned": aligned, "sampling_ratio": samples}
    given = {name: value for name, value in given.items() if value is not None}
    output = roi_align(input, boxes, (2, 3), 0.8, **given)
    numbers = torch.tensor([0, 0, 2, 2, 2], dtype=torch.float64)[:, None]
    rois = torch.cat([numbers, torch.cat(boxes)], 1)
    expected = reference.roi_align(input, rois, (2, 3), 0.8, samples or 0, aligned=bool(aligned))
    torch.testing.assert_close(output, expected)
    assert torch.equal(roi_align(input, rois, (2, 3), 0.8, **given), output)
    assert torch.equal(RoIAlign((2, 3), 0.8, samples or -1, bool(aligned))(input, boxes), output)


def test_roi_align_scripted_and_traced():
    input, boxes = maps_and_boxes()
    expected = roi_align(input, boxes, (2, 3), 0.8, 2, True)
    numbers = torch.tensor([0, 0, 2, 2, 2], dtype=torch.float64)[:, None]
    rois = torch.cat([numbers, torch.cat(boxes)], 1)
    layer = RoIAlign((2, 3), 0.8, 2, True)
    for function in (torch.jit.script(layer), torch.fx.symbolic_trace(layer)):
        for given in (boxes, rois):
            assert torch.equal(function(input, given), expected)
    assert torch.equal(torch.jit.script(roi_align)(input, boxes, (2, 3), 0.8, 2, True), expected)


def test_accelerate_without_torchvision(monkeypatch):
    """With torchvision: ``nox -s others``."""
    restore()  # nothing to undo
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="torchvision"):
        accelerate()
