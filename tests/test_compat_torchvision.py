"""``dcnzoo.compat.torchvision``: torchvision's signature, its results, and errors where it would misread."""

import inspect
import io
import itertools
import math

import pytest
import torch

import dcnzoo.ops.reference as reference
from dcnzoo.compat.torchvision import DeformConv2d, RoIAlign, deform_conv2d, roi_align

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


def test_signature():
    """As in torchvision 0.28."""
    assert [
        (p.name, None if p.default is p.empty else p.default)
        for p in inspect.signature(deform_conv2d).parameters.values()
    ] == [
        ("input", None),
        ("offset", None),
        ("weight", None),
        ("bias", None),
        ("stride", (1, 1)),
        ("padding", (0, 0)),
        ("dilation", (1, 1)),
        ("mask", None),
    ]
    names = list(inspect.signature(DeformConv2d).parameters)
    theirs = "in_channels out_channels kernel_size stride padding dilation groups bias"
    assert names[:8] == theirs.split()
    assert list(inspect.signature(DeformConv2d.forward).parameters) == ["self", "input", "offset", "mask"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_deform_conv2d(groups, with_mask, with_bias):
    input, offset, weight, bias, mask = tensors(groups)
    weight = torch.randn(8, 4 // groups, 3, 2, dtype=torch.float64)
    bias = torch.randn(8, dtype=torch.float64) if with_bias else None
    mask = mask if with_mask else None
    leaves = [t.requires_grad_() for t in (input, offset, weight, bias, mask) if t is not None]
    output = deform_conv2d(input, offset, weight, bias, **GEOMETRY, mask=mask)
    expected = reference.deform_conv(input, weight, offset, mask, bias, *GEOMETRY.values(), groups)
    torch.testing.assert_close(output, expected, atol=1e-10, rtol=1e-10)
    got, want = (torch.autograd.grad(o.square().sum(), leaves) for o in (output, expected))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-9, rtol=1e-9)


def test_integers_and_positions():
    input, _, weight, bias, _ = tensors()
    offset = torch.randn(3, 24, 5, 4, dtype=torch.float64)
    mask = torch.rand(3, 12, 5, 4, dtype=torch.float64)
    output = deform_conv2d(input, offset, weight, bias, 2, 1, 1, mask)
    expected = reference.deform_conv(input, weight, offset, mask, bias, (2, 2), (1, 1), (1, 1), 2)
    torch.testing.assert_close(output, expected)


def test_example_of_torchvision():
    """The example of torchvision's documentation."""
    input = torch.rand(4, 3, 10, 10)
    kh, kw = 3, 3
    weight = torch.rand(5, 3, kh, kw)
    offset = torch.rand(4, 2 * kh * kw, 8, 8)
    mask = torch.rand(4, kh * kw, 8, 8)
    out = deform_conv2d(input, offset, weight, mask=mask)
    assert out.shape == (4, 5, 8, 8)


def test_layer():
    input, offset, _, _, mask = tensors(dtype=torch.float32)
    torch.manual_seed(3)
    layer = DeformConv2d(4, 6, (3, 2), groups=2, **GEOMETRY)
    torch.manual_seed(3)  # its initialisation is nn.Conv2d's, as is torchvision's
    plain = torch.nn.Conv2d(4, 6, (3, 2), groups=2)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert all(torch.equal(layer.state_dict()[name], plain.state_dict()[name]) for name in ("weight", "bias"))
    expected = deform_conv2d(input, offset, layer.weight, layer.bias, **GEOMETRY, mask=mask)
    torch.testing.assert_close(layer(input, offset, mask), expected)
    torch.testing.assert_close(
        layer(input, offset), deform_conv2d(input, offset, layer.weight, layer.bias, **GEOMETRY)
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((3, 16, 3), "DeformConv2d(3, 16, kernel_size=(3, 3), stride=(1, 1))"),
        (
            (4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, False),
            "DeformConv2d(4, 6, kernel_size=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), "
            "groups=2, bias=False)",
        ),
    ],
)
def test_repr(arguments, text):
    assert repr(DeformConv2d(*arguments)) == text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": (6, 3, 3, 2)}, r"weight: expected .* divides the 4 of input, got 3 .*order is input"),
        ({"weight": (6, 0, 3, 2)}, r"weight: expected .* divides the 4 of input, got 0"),
        ({"weight": (6, 2, 3)}, r"deform_conv2d: weight: expected 4 dimensions"),
        ({"input": (4, 9, 7)}, r"deform_conv2d: input: expected 4 dimensions"),
        ({"weight": (5, 2, 3, 2)}, r"groups: expected a divisor of the 5 output channels, got 2"),
        ({"offset": (3, 23, *OUT)}, r"offset: expected 12 channels .* got 23"),
        ({"offset": (3, 24, 5, 8)}, r"offset: expected spatial size \(5, 9\) like the output, got \(5, 8\)"),
        ({"mask": (3, 24, *OUT, 1)}, r"mask: expected 4 dimensions"),
        ({"bias": (5,)}, r"bias: expected shape \(6,\), got \(5,\)"),
    ],
)
def test_bad_input(changed, message):
    given = dict(zip(("input", "offset", "weight", "bias", "mask"), tensors(), strict=True))
    given.update((name, torch.zeros(shape, dtype=torch.float64)) for name, shape in changed.items())
    with pytest.raises(RuntimeError, match=message):
        deform_conv2d(**given, **GEOMETRY)


def test_scripted():
    input, offset, weight, bias, mask = tensors()
    scripted = torch.jit.script(deform_conv2d)
    geometry = tuple(GEOMETRY.values())
    expected = deform_conv2d(input, offset, weight, bias, *geometry, mask)
    assert torch.equal(scripted(input, offset, weight, bias, *geometry, mask), expected)

    layer = DeformConv2d(4, 6, (3, 2), groups=2, **GEOMETRY).double()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    loaded = torch.jit.load(io.BytesIO(file.getvalue()))
    for given in (None, mask):
        assert torch.equal(loaded(input, offset, given), layer(input, offset, given))


# RoIAlign


def maps_and_boxes(dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    input = torch.randn(3, 2, 9, 12, dtype=dtype, generator=generator)
    boxes = [torch.rand(count, 4, dtype=dtype, generator=generator) * 12 for count in (2, 0, 3)]
    return input, [torch.cat([b[:, :2].minimum(b[:, 2:]), b[:, :2].maximum(b[:, 2:])], 1) for b in boxes]


def bin_by_bin(image, box, size, scale, samples, aligned):
    """torchvision's definition, one sample after the other."""
    x1, y1, x2, y2 = (float(v) * scale - (0.5 if aligned else 0) for v in box)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    high, wide = height / size[0], width / size[1]  # of a bin
    rows, columns = (samples, samples) if samples > 0 else (math.ceil(high), math.ceil(wide))

    def read(y, x):
        if not (-1 <= y <= image.shape[1] and -1 <= x <= image.shape[2]):
            return torch.zeros(image.shape[0], dtype=image.dtype)
        y, x = min(max(y, 0), image.shape[1] - 1), min(max(x, 0), image.shape[2] - 1)
        total = 0
        for v in (math.floor(y), math.floor(y) + 1):
            for u in (math.floor(x), math.floor(x) + 1):
                weight = max(0, 1 - abs(y - v)) * max(0, 1 - abs(x - u))
                total = total + (weight * image[:, v, u] if weight else 0)
        return total

    output = image.new_zeros(image.shape[0], *size)
    for i, j in itertools.product(*map(range, size)):
        points = [
            read(y1 + (i + (a + 0.5) / rows) * high, x1 + (j + (b + 0.5) / columns) * wide)
            for a, b in itertools.product(range(rows), range(columns))
        ]
        output[:, i, j] = sum(points) / max(len(points), 1)
    return output


@pytest.mark.parametrize("aligned", [None, False, True])
@pytest.mark.parametrize("samples", [None, 0, 2])
def test_roi_align(aligned, samples):
    input, boxes = maps_and_boxes()
    given = {"aligned": aligned, "sampling_ratio": samples}
    given = {name: value for name, value in given.items() if value is not None}
    output = roi_align(input, boxes, (2, 3), 0.8, **given)
    expected = [
        bin_by_bin(input[n], box, (2, 3), 0.8, samples or 0, bool(aligned))
        for n, own in enumerate(boxes)
        for box in own
    ]
    torch.testing.assert_close(output, torch.stack(expected))
    numbers = torch.tensor([0, 0, 2, 2, 2], dtype=torch.float64)[:, None]
    rois = torch.cat([numbers, torch.cat(boxes)], 1)
    assert torch.equal(roi_align(input, rois, (2, 3), 0.8, **given), output)
    assert torch.equal(RoIAlign((2, 3), 0.8, samples or -1, bool(aligned))(input, boxes), output)


def test_roi_align_gradient_and_one_size():
    input, boxes = maps_and_boxes()
    assert roi_align(input, boxes, 4).shape == (5, 2, 4, 4)
    input.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, boxes, 2, 0.5), input, fast_mode=True)


def test_roi_align_without_boxes():
    input, _ = maps_and_boxes()
    assert roi_align(input, [torch.zeros(0, 4, dtype=torch.float64)] * 3, 2).shape == (0, 2, 2, 2)
    assert roi_align(input[:0], [], 2).shape == (0, 2, 2, 2)


def test_roi_align_refuses():
    input, boxes = maps_and_boxes()
    with pytest.raises(RuntimeError, match=r"roi_align: boxes: expected 3 tensors, .*got 2"):
        roi_align(input, boxes[:2], 2)
    with pytest.raises(
        RuntimeError, match=r"roi_align: boxes: expected shape \(L, 4\) for image 1, got \(0, 5\)"
    ):
        roi_align(input, [boxes[0], torch.zeros(0, 5), boxes[2]], 2)


def test_signature_of_roi_align():
    """As in torchvision 0.28."""
    parameters = inspect.signature(roi_align).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert [p.name for p in parameters][:3] == ["input", "boxes", "output_size"]
    assert defaults == {"spatial_scale": 1.0, "sampling_ratio": -1, "aligned": False}
    assert list(inspect.signature(RoIAlign).parameters) == [
        "output_size",
        *("spatial_scale", "sampling_ratio", "aligned"),
    ]
    expected = "RoIAlign(output_size=(2, 3), spatial_scale=0.5, sampling_ratio=2, aligned=False)"
    assert repr(RoIAlign((2, 3), 0.5, 2)) == expected
