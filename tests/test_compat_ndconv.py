"""``dcnzoo.compat.ndconv``: the N-d op's layout, against its definition written out in Python."""

import inspect
import itertools
import math

import pytest
import torch

from dcnzoo.compat import ndconv

FUNCTIONS = {1: ndconv.deform_conv1d, 2: ndconv.deform_conv2d, 3: ndconv.deform_conv3d}
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 1, 3)}
STRIDE = {1: (2,), 2: (2, 1), 3: (1, 2, 1)}
PADDING = {1: (1,), 2: (1, 2), 3: (1, 0, 2)}
DILATION = {1: (2,), 2: (1, 2), 3: (2, 1, 1)}
SIZE = {1: (9,), 2: (5, 4), 3: (3, 4, 2)}


def call(rank, groups, per_group, channels=6, batch=2, spread=1.5, bias=True):
    """The arguments of a call, in the order of the op."""
    generator = torch.Generator().manual_seed(100 * rank + 10 * groups + per_group)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    geometry = (KERNEL[rank], STRIDE[rank], PADDING[rank], DILATION[rank])
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(SIZE[rank], *geometry, strict=True)
    ]
    rows = groups * per_group * math.prod(KERNEL[rank])
    return (
        normal(batch, channels, *SIZE[rank]),
        normal(4, channels // groups, *KERNEL[rank]),
        normal(batch, rank, rows, *out) * spread,
        normal(batch, 1, rows, *out),
        *geometry,
        groups,
        per_group,
        normal(4) if bias else None,
    )


def multilinear(image, point):
    """``image`` (nested lists) at a real point; a corner outside counts as zero."""
    value = 0.0
    for corner in itertools.product((0, 1), repeat=len(point)):
        weight, element = 1.0, image
        for coordinate, step in zip(point, corner, strict=True):
            low = math.floor(coordinate)
            weight *= coordinate - low if step else 1 - (coordinate - low)
            inside = element is not None and 0 <= low + step < len(element)
            element = element[low + step] if inside else None
        value += weight * element if element is not None else 0
    return value


def definition(
    input, weight, offset_field, attn_mask, kernel, stride, padding, dilation, groups, per_group, bias
):
    """One output value after the other, as the op's kernels index their arrays."""
    batch, (out_channels, in_group) = len(input), weight.shape[:2]
    taps = list(itertools.product(*map(range, kernel)))
    out = input.new_zeros(batch, out_channels, *offset_field.shape[3:])
    images = input.tolist()
    for n, o, *p in itertools.product(*map(range, out.shape)):
        group = o // (out_channels // groups)
        total = 0.0 if bias is None else bias[o].item()
        for i, (t, tap) in itertools.product(range(in_group), enumerate(taps)):
            row = (group * per_group + i * per_group // in_group) * len(taps) + t
            point = [
                p[a] * stride[a] - padding[a] + tap[a] * dilation[a] + offset_field[(n, a, row, *p)].item()
                for a in range(len(kernel))
            ]
            sample = multilinear(images[n][group * in_group + i], point)
            total += weight[(o, i, *tap)].item() * sample * attn_mask[(n, 0, row, *p)].item()
        out[(n, o, *p)] = total
    return out


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups, per_group", [(1, 1), (2, 1), (2, 3), (1, 6), (1, 4), (2, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_definition(rank, groups, per_group, bias):
    """(1, 4) and (2, 2) split 6 and 3 channels unequally."""
    arguments = call(rank, groups, per_group, bias=bias)
    torch.testing.assert_close(FUNCTIONS[rank](*arguments), definition(*arguments))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups, per_group", [(1, 1), (2, 3), (1, 4)])
@pytest.mark.parametrize("name", ["deformable_groups_per_groups", "deformable_groups"])
def test_layout_and_names_of_later_versions(rank, groups, per_group, name):
    """Offsets (N, G·K·rank, *out), the axis last, and masks (N, G·K, *out)."""
    arguments = call(rank, groups, per_group)
    names = list(inspect.signature(FUNCTIONS[rank]).parameters)
    given = dict(zip(names, arguments, strict=True))
    expected = definition(*arguments)
    batch, _, rows, *out = given["offset_field"].shape
    flat = torch.empty(batch, rows * rank, *out, dtype=torch.float64)
    for row, axis in itertools.product(range(rows), range(rank)):
        flat[:, row * rank + axis] = given["offset_field"][:, axis, row]
    given.update(offset_field=flat, attn_mask=given["attn_mask"][:, 0])
    torch.testing.assert_close(FUNCTIONS[rank](*given.values()), expected)
    given[name] = given.pop("offset_field_channels_per_groups")
    torch.testing.assert_close(FUNCTIONS[rank](**given), expected)
    with pytest.raises(TypeError, match=rf"{name}: .*offset_field_channels_per_groups"):
        FUNCTIONS[rank](**given, offset_field_channels_per_groups=1)


def test_example():
    """The example of its README, on the CPU."""
    device = "cpu"
    inp = torch.randn(2, 32, 64, 64).to(device)
    weight = torch.randn(64, 32 // 2, 3, 3).to(device)
    bias = torch.randn(64).to(device)
    offset_field = torch.randn(2, 2, 16 * 9, 64, 64).to(device)
    attn_mask = torch.randn(2, 1, 16 * 9, 64, 64).to(device)

    arguments = (inp, weight, offset_field, attn_mask, (3, 3), (1, 1), (1, 1), (1, 1), 2, 8, bias)
    with torch.amp.autocast(device, dtype=torch.bfloat16):
        output = ndconv.deform_conv2d(*arguments)

    assert (output.shape, output.dtype) == ((2, 64, 64, 64), torch.bfloat16)
    expected = ndconv.deform_conv2d(*arguments)
    assert (output - expected).abs().max() / expected.abs().max() < 0.01


@pytest.mark.parametrize("per_group", [3, 2])
def test_gradients(per_group):
    input, weight, offset_field, attn_mask, *rest, bias = call(2, 2, per_group, batch=1)
    leaves = [t.requires_grad_() for t in (input, weight, offset_field, attn_mask, bias)]
    assert torch.autograd.gradcheck(
        lambda x, w, o, m, b: ndconv.deform_conv2d(x, w, o, m, *rest, b), leaves, fast_mode=True
    )


def test_no_grad_and_checkpoint():
    arguments = call(2, 2, 3)
    with torch.no_grad():
        expected = ndconv.deform_conv2d(*arguments)
    arguments[2].requires_grad_()
    output = torch.utils.checkpoint.checkpoint(ndconv.deform_conv2d, *arguments, use_reentrant=False)
    torch.testing.assert_close(output, expected)
    assert torch.autograd.grad(output.sum(), arguments[2])[0].abs().sum() > 0


def test_compiled():
    arguments = call(2, 2, 2)
    compiled = torch.compile(ndconv.deform_conv2d, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), ndconv.deform_conv2d(*arguments))


def test_integers():
    """A number stands for all axes, as the op's ``int[]`` arguments allow."""
    torch.manual_seed(0)
    tensors = (
        torch.randn(1, 4, 6, 5),
        torch.randn(2, 4, 3, 3),
        torch.randn(1, 2, 9, 6, 5),
        torch.rand(1, 1, 9, 6, 5),
    )
    expected = ndconv.deform_conv2d(*tensors, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1, None)
    assert torch.equal(ndconv.deform_conv2d(*tensors, 3, 1, [1], [1], 1, 1, None), expected)


def test_signature():
    """The README's call is by position: order, and no defaults."""
    names = (
        "input weight offset_field attn_mask kernel_size stride padding dilation groups "
        "offset_field_channels_per_groups bias"
    )
    for function in FUNCTIONS.values():
        parameters = inspect.signature(function).parameters
        assert list(parameters) == names.split()
        assert all(p.default is p.empty for p in parameters.values())


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(6, 5, 4), r"deform_conv2d: input: expected 4 dimensions, got shape \(6, 5, 4\)"),
        (1, torch.zeros(4, 3, 3), r"deform_conv2d: weight: expected 4 dimensions"),
        (1, torch.zeros(4, 2, 3, 2), r"weight: expected 3 input channels \(6 / 2 groups\), got 2"),
        (
            2,
            torch.zeros(2, 73, 3, 6),
            r"offset_field: .* or \(batch, 72, \*out\) \(36 = 2 gr",
        ),
        (2, torch.zeros(2, 72, 3, 5), r"offset: expected spatial size \(3, 6\) .*got \(3, 5\)"),
        (2, torch.zeros(2, 2, 35, 3, 6), r"3 per group · 6 taps\), got \(2, 2, 35, 3, 6\)"),
        (2, torch.zeros(2, 3, 36, 3, 6), r"offset_field: expected shape \(batch, 2, 36"),
        (
            2,
            torch.zeros(2, 2, 36, 3, 5),
            r"offset: expected spatial size \(3, 6\) .*got \(3, 5\)",
        ),
        (3, torch.zeros(2, 72, 3, 6), r"attn_mask: expected shape \(batch, 1, 36"),
        (3, torch.zeros(2, 2, 36, 3, 6), r"attn_mask: expected shape \(batch, 1, 36"),
        (4, (2, 3), r"kernel_size: expected \(3, 2\), that of weight, got \(2, 3\)"),
        (4, 3, r"kernel_size: expected \(3, 2\), that of weight, got \(3, 3\)"),
        (5, (1, 1, 1), r"stride: expected an integer or 2 of them, got \(1, 1, 1\)"),
        (5, 0, r"stride: expected at least 1"),
        (8, 4, r"groups: expected a divisor of the 6 input channels, got 4"),
        (8, 0, r"groups: expected a divisor of the 6 input channels, got 0"),
        (9, 4, r"offset_field_channels_per_groups: expected 1 to 3, the channels of a group, got 4"),
        (9, 0, r"offset_field_channels_per_groups: expected 1 to 3"),
        (10, torch.zeros(3), r"bias: expected shape \(4,\), got \(3,\)"),
    ],
)
def test_bad_input(position, value, message):
    arguments = list(call(2, 2, 3))
    value = value.double() if isinstance(value, torch.Tensor) else value
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        ndconv.deform_conv2d(*arguments)
