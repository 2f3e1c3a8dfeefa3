"""``dcnzoo.compat.ndconv``: the N-d op's layout."""

import importlib
import inspect
import itertools
import math

import pytest
import torch

from dcnzoo.compat import ndconv
from dcnzoo.ops import reference
from tests.op_cases import output_size

FUNCTIONS = {1: ndconv.deform_conv1d, 2: ndconv.deform_conv2d, 3: ndconv.deform_conv3d}
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 1, 3)}
STRIDE = {1: (2,), 2: (2, 1), 3: (1, 2, 1)}
PADDING = {1: (1,), 2: (1, 2), 3: (1, 0, 2)}
DILATION = {1: (2,), 2: (1, 2), 3: (2, 1, 1)}
SIZE = {1: (9,), 2: (5, 4), 3: (3, 4, 2)}


def call(rank, groups, per_group, bias=True):
    """The arguments of a call, in the order of the op."""
    generator = torch.Generator().manual_seed(100 * rank + 10 * groups + per_group)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    geometry = (KERNEL[rank], STRIDE[rank], PADDING[rank], DILATION[rank])
    out = output_size(SIZE[rank], *geometry)
    rows = groups * per_group * math.prod(KERNEL[rank])
    return (
        normal(2, 6, *SIZE[rank]),
        normal(4, 6 // groups, *KERNEL[rank]),
        normal(2, rank, rows, *out) * 1.5,
        normal(2, 1, rows, *out),
        *geometry,
        groups,
        per_group,
        normal(4) if bias else None,
    )


def definition(
    input, weight, offset_field, attn_mask, kernel, stride, padding, dilation, groups, per_group, bias
):
    """Convolve one input channel at a time, with the array indices of the op's kernels."""
    out_channels, in_group = weight.shape[:2]
    taps = torch.arange(math.prod(kernel))
    output = 0
    for o, i in itertools.product(range(out_channels), range(in_group)):
        group = o // (out_channels // groups)
        rows = (group * per_group + i * per_group // in_group) * len(taps) + taps
        offset = offset_field[:, :, rows].transpose(1, 2).flatten(1, 2)
        image, row = input[:, [group * in_group + i]], torch.zeros_like(weight[:, :1])
        row[o] = weight[o, i]
        tensors = (image, row, offset, attn_mask[:, 0, rows], None)
        output = output + reference.deform_conv(*tensors, stride, padding, dilation, 1)
    return output if bias is None else output + bias.view(-1, *[1] * len(kernel))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("groups", "per_group"), [(2, 3), (1, 6), (1, 4), (2, 2)])
def test_definition(rank, groups, per_group):
    """(1, 4) and (2, 2) split 6 and 3 channels unequally."""
    arguments = call(rank, groups, per_group, bias=per_group != 6)
    torch.testing.assert_close(FUNCTIONS[rank](*arguments), definition(*arguments))


@pytest.mark.parametrize(
    ("rank", "groups", "per_group", "name"),
    [
        (1, 1, 1, "deformable_groups"),
        (2, 2, 3, "deformable_groups_per_groups"),
        (3, 1, 4, "deformable_groups"),
    ],
)
def test_layout_and_names_of_later_versions(rank, groups, per_group, name):
    """Offsets (N, G·K·rank, *out), with the axis last, and masks (N, G·K, *out)."""
    arguments = call(rank, groups, per_group)
    parameters = inspect.signature(FUNCTIONS[rank]).parameters
    names = "input weight offset_field attn_mask kernel_size stride padding dilation groups"
    assert list(parameters) == [*names.split(), "offset_field_channels_per_groups", "bias"]
    assert all(p.default is p.empty for p in parameters.values()), "the README's call is by position"
    given = dict(zip(parameters, arguments, strict=True))
    expected = FUNCTIONS[rank](*arguments)
    flat = given["offset_field"].transpose(1, 2).flatten(1, 2)
    given.update(offset_field=flat, attn_mask=given["attn_mask"][:, 0])
    torch.testing.assert_close(FUNCTIONS[rank](*given.values()), expected)
    given[name] = given.pop("offset_field_channels_per_groups")
    torch.testing.assert_close(FUNCTIONS[rank](**given), expected)
    with pytest.raises(TypeError, match=rf"{name}: .*offset_field_channels_per_groups"):
        FUNCTIONS[rank](**given, offset_field_channels_per_groups=1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_provided_operator(rank):
    """The module's layers call ``torch.ops.custom_op`` with positional arguments and tuples of sizes."""
    importlib.import_module("dcnzoo.compat.compiled.custom_op")
    operator = getattr(torch.ops.custom_op, f"deform_conv{rank}d")
    arguments = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in call(rank, 2, 3)]
    leaves = [t for t in arguments if isinstance(t, torch.Tensor)]
    results = []
    for function in (FUNCTIONS[rank], operator):
        output = function(*arguments)
        results.append([output, *torch.autograd.grad(output.sin().sum(), leaves)])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    if rank == 2:
        for function in (FUNCTIONS[rank], operator):
            compiled = torch.compile(function, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(*arguments), results[0][0])
    assert operator(*arguments[:-1], None).shape == results[0][0].shape
    with torch.amp.autocast("cpu", dtype=torch.bfloat16):
        half = [t.float() if isinstance(t, torch.Tensor) else t for t in arguments]
        assert operator(*half).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match=f"deform_conv{rank}d: offset_field: expected"):
        operator(*arguments[:2], arguments[2][:, :, :-1], *arguments[3:])


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, (6, 5, 4), "input: "),
        (1, (4, 2, 3, 2), r"weight: .*got \(4, 2, 3, 2\)"),
        (2, (2, 73, 3, 6), "offset_field: "),
        (2, (2, 2, 35, 3, 6), r"offset_field: .*got \(2, 2, 35, 3, 6\)"),
        (2, (2, 3, 36, 3, 6), "offset_field: "),
        (3, (2, 72, 3, 6), "attn_mask: "),
        (3, (2, 2, 36, 3, 6), "attn_mask: "),
        (4, 3, r"kernel_size: .*got \(3, 3\)"),
        (8, 4, "groups: .*got 4"),
        (9, 4, "offset_field_channels_per_groups: .*got 4"),
    ],
)
def test_bad_input(position, value, message):
    arguments = list(call(2, 2, 3))
    is_tensor = isinstance(arguments[position], torch.Tensor)
    arguments[position] = torch.zeros(value, dtype=torch.float64) if is_tensor else value
    with pytest.raises(RuntimeError, match=f"deform_conv2d: {message}"):
        ndconv.deform_conv2d(*arguments)
