"""deform_conv beyond agreement with the reference: identities, borders and chunks."""

import inspect
import io
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import dcnzoo.ops
from dcnzoo.ops import deform_conv2d, deform_conv_transpose2d
from dcnzoo.ops import reference as oracle
from tests import op_cases
from tests.helpers.operators import assert_same
from tests.helpers.processes import ROOT, compile_cpp
from tests.op_cases import Sample
from tests.op_cases import deform_conv as conv
from tests.op_cases import deform_conv_transpose as transpose
from tests.op_cases.deform_conv import make

both = pytest.mark.parametrize(
    ("function", "cases"),
    [(deform_conv2d, conv), (deform_conv_transpose2d, transpose)],
    ids=["deform_conv", "deform_conv_transpose"],
)
# stride, padding, dilation, output_padding. In the last, only the dilation allows output_padding.
GEOMETRIES = [
    ((1, 1, 1), (0, 0, 0), (1, 1, 1), (0, 0, 0)),
    ((2, 3, 2), (1, 0, 1), (1, 2, 1), (1, 2, 0)),
    ((1, 2, 1), (1, 1, 0), (3, 4, 2), (2, 3, 1)),
]


def test_hand_worked_example():
    """One tap, one pixel: 0.25·0.5·1 + 0.25·0.5·2 + 0.75·0.5·3 + 0.75·0.5·4, times mask, plus bias."""
    input = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    weight = torch.tensor([[[[2.0]]]], dtype=torch.float64)
    offset = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    offset[0, :, 0, 0] = torch.tensor([0.75, 0.5])  # y, then x
    mask = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    bias = torch.tensor([10.0], dtype=torch.float64)
    expected = torch.tensor([[[[13.0, 12.0], [13.0, 14.0]]]], dtype=torch.float64)
    expected[0, 0, 0, 0] = 10 + 2 * 0.5 * (0.125 * 1 + 0.125 * 2 + 0.375 * 3 + 0.375 * 4)
    arguments = (input, weight, offset, mask, bias)
    torch.testing.assert_close(deform_conv2d(*arguments), expected)
    torch.testing.assert_close(oracle.deform_conv(*arguments, (1, 1), (0, 0), (1, 1), 1), expected)


def test_hand_worked_example_of_the_transposed():
    """Pixel 2 · weight 3 · mask 0.5 = 3, distributed to the four pixels around (0.75, 0.5)."""
    input = torch.tensor([[[[2.0]]]], dtype=torch.float64)
    weight = torch.tensor([[[[3.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
    offset = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
    offset[0, :2, 0, 0] = torch.tensor([0.75, 0.5])  # y, then x
    mask = torch.full((1, 4, 1, 1), 0.5, dtype=torch.float64)
    bias = torch.tensor([10.0], dtype=torch.float64)
    expected = torch.tensor([[[[10 + 0.375, 10 + 0.375], [10 + 1.125, 10 + 1.125]]]], dtype=torch.float64)
    arguments = (input, weight, offset, mask, bias)
    torch.testing.assert_close(deform_conv_transpose2d(*arguments), expected)
    true = oracle.deform_conv_transpose(*arguments, (1, 1), (0, 0), (0, 0), (1, 1), 1)
    torch.testing.assert_close(true, expected)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])
def test_zero_offset_is_plain_convolution(rank, groups, geometry, transposed):
    names = ("stride", "padding", "dilation", "output_padding")[: 3 + transposed]
    given = {name: values[:rank] for name, values in zip(names, geometry, strict=False)} | {"groups": groups}
    size, kernel = (9, 10, 6)[:rank], (3, 2, 2)[:rank]
    sample = (transpose if transposed else conv).make("plain", channels=4, size=size, kernel=kernel, **given)
    input, weight, offset, mask, bias = sample.tensors
    name = f"conv{'_transpose' * transposed}{rank}d"
    expected = getattr(F, name)(input, weight, bias, **given)
    function = getattr(dcnzoo.ops, f"deform_{name}")
    for field, ones in ((offset * 0, mask * 0 + 1), (offset * 0, None), (None, mask * 0 + 1), (None, None)):
        actual = function(input, weight, field, ones, bias, **given)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_is_torchs(rank, padding):
    """Also with an even kernel, where ``same`` pads the two sides differently."""
    sample = conv.make("named", channels=4, size=(9, 10, 6)[:rank], kernel=(3, 4, 2)[:rank], padding=1)
    input, weight, _, _, bias = sample.tensors
    options = dict(padding=padding, dilation=(2, 1, 1)[:rank])
    expected = getattr(F, f"conv{rank}d")(input, weight, bias, **options)
    function = getattr(dcnzoo.ops, f"deform_conv{rank}d")
    shape = (len(input), rank * weight[0, 0].numel(), *expected.shape[2:])
    offset = torch.randn(shape, dtype=input.dtype)
    for field, result in ((offset * 0, expected), (None, expected)):
        torch.testing.assert_close(function(input, weight, field, None, bias, **options), result)
    pixels = [
        d * (k - 1) * (padding == "same") for d, k in zip(options["dilation"], weight.shape[2:], strict=True)
    ]
    sides = [side for total in reversed(pixels) for side in (total // 2, total - total // 2)]
    expected = function(F.pad(input, sides), weight, offset, None, bias, dilation=options["dilation"])
    torch.testing.assert_close(function(input, weight, offset, None, bias, **options), expected)


@both
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_lists_of_one_and_no_batch_axis(function, cases, rank):
    function = getattr(dcnzoo.ops, function.__name__.replace("2d", f"{rank}d"))
    sample = cases.make("forms", size=(9, 10, 6)[:rank], kernel=(3, 2, 2)[:rank], padding=1, stride=2)
    input, weight, offset, mask, bias = sample.tensors
    expected = function(input, weight, offset, mask, bias, stride=2, padding=1)
    got = function(input, weight, offset, mask, bias, stride=[2], padding=(1,))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for fields in ((offset, mask), (offset, None), (None, mask), (None, None)):
        of_first = [None if field is None else field[0] for field in fields]
        expected = function(input, weight, *fields, bias, stride=2, padding=1)[0]
        torch.testing.assert_close(function(input[0], weight, *of_first, bias, 2, 1), expected)


@pytest.mark.parametrize(("padding", "stride"), [("same", 2), ("full", 1)])
def test_padding_by_name_is_refused_where_torch_refuses_it(padding, stride):
    input, weight, offset, _, _ = make("named").tensors
    with pytest.raises(RuntimeError, match=rf"^deform_conv2d: padding: expected .*'{padding}'"):
        deform_conv2d(input, weight, offset, padding=padding, stride=stride)


@pytest.mark.parametrize(("down", "right"), [(0, 1), (2, 0), (-1, 3), (-2, -2)])
def test_integer_offset_reads_a_shifted_input(down, right):
    sample = make("shift", padding=1, mask_groups=None)
    input, weight, offset, _, bias = sample.tensors
    offset = torch.zeros_like(offset)
    offset[:, 0::2], offset[:, 1::2] = down, right
    # shifted[y, x] = input[y + down, x + right] on the map padded with zeros, including a margin
    margin = 4
    wide = F.pad(input, [margin + 1] * 4)
    shifted = torch.roll(wide, (-down, -right), (2, 3))[..., margin:-margin, margin:-margin]
    expected = F.conv2d(shifted, weight, bias)
    actual = deform_conv2d(input, weight, offset, None, bias, padding=1)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [3, 40])  # samples are computed over pixels, and over channels
@pytest.mark.parametrize("axis", [0, 1])
def test_samples_on_borders_and_grid_lines(axis, channels):
    """One tap samples chosen coordinates on one axis, and the middle of the other. Compare also gradients."""
    height, width = 4, 6
    size = (height, width)[axis]
    coordinates = [-1.5, -1.0, -0.999, -0.5, 0.0, 0.5, 1.0, size - 1.0, size - 0.5, size - 0.001]
    coordinates += [float(size), size + 0.5, 1e30, -1e30]
    count = len(coordinates)
    generator = torch.Generator().manual_seed(5)
    input = torch.randn(1, channels, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, channels, 1, 1, generator=generator, dtype=torch.float64)
    # The output has the input's size: use one coordinate per output pixel, row by row.
    position = torch.full((2, height * width), 1.25, dtype=torch.float64)
    position[axis, :count] = torch.tensor(coordinates, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).reshape(
        2, -1
    )
    offset = (position - grid).view(1, 2, height, width)
    mask = torch.rand(1, 1, height, width, generator=generator, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (input, weight, offset, mask)]
    ours = deform_conv2d(*tensors)
    true = oracle.deform_conv(*tensors, None, (1, 1), (0, 0), (1, 1), 1)
    torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-12)
    for i, coordinate in enumerate(coordinates):
        if coordinate <= -1 or coordinate >= size:
            assert (ours.flatten(2)[0, :, i] == 0).all()
    grad = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    mine, reference_gradients = (torch.autograd.grad(o, tensors, grad) for o in (ours, true))
    torch.testing.assert_close(mine, reference_gradients, rtol=1e-12, atol=1e-12)
    offset_gradient = mine[2].flatten(2)[0]
    at_minus_one = coordinates.index(-1.0)
    assert (offset_gradient[:, at_minus_one] == 0).all(), "mmcv's rule at exactly -1"
    assert (offset_gradient[axis, coordinates.index(-0.5)] != 0).all(), "a gradient back into the map"


@both
def test_outside_samples_stay_zero_where_the_map_is_not_finite(function, cases):
    input, weight, offset, mask, _ = cases.make("infinite map", padding=1).tensors
    infinite, outside = torch.full_like(input, math.inf), torch.full_like(offset, 1e4)
    assert (function(infinite, weight, outside, mask, padding=1) == 0).all()


@both
@pytest.mark.parametrize(
    ("batch", "step"), [(0, 1), (1, 7), (33, 1), (33, 32), (33, None), (65, 64), (65, 1000)]
)
def test_any_batch_with_any_im2col_step(function, cases, batch, step):
    sample = cases.make("step", batch=batch, size=(4, 5), im2col_step=step)
    assert_same(cases, sample, sample, 1e-10)


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_map_that_is_staged_in_several_passes(groups):
    """CPU kernels copy a limited number of channels at a time and accumulate over the passes."""
    size = dict(batch=1, channels=192, out_channels=3, size=(120, 128), kernel=(1, 2))
    sample = make("large", groups=groups, offset_groups=2, mask_groups=1, **size)
    assert sample.tensors[0].nbytes > 20 << 20
    assert_same(conv, sample, sample, 1e-10)


# Large enough that several threads work on one block of channels of one image.
LARGE = dict(batch=1, channels=64, out_channels=40, size=(40, 36))
SHARED = [
    make("asymmetric", **LARGE | dict(size=(80, 37)), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    make("two images", **LARGE | dict(batch=2, size=(37, 39))),
    make("no mask", **LARGE, mask_groups=None),
    make("mask alone", **LARGE, offset_groups=None, padding=2),
    make("groups differ", **LARGE | dict(channels=96), groups=2, offset_groups=3, mask_groups=4),
    make("narrow groups", **LARGE, groups=8),
    make("groups of 6", **LARGE | dict(channels=66, out_channels=33), groups=11),
    # two blocks, each padded to as many lanes as all channels: 4 lanes with AVX2, 8 with AVX-512
    make("blocks of 2 of 4 channels", **LARGE | dict(channels=4, out_channels=8), groups=4, offset_groups=2),
    make("blocks of 4 of 8 channels", **LARGE | dict(channels=8, out_channels=8), groups=8, offset_groups=2),
    make("own points", **LARGE, offset_groups=64, mask_groups=64),
    make(
        "own points, one to two",
        **LARGE | dict(out_channels=128),
        groups=64,
        offset_groups=64,
        mask_groups=64,
    ),
    make("one to one", **LARGE | dict(out_channels=64), groups=64),
    make("no whole vectors", **LARGE | dict(channels=66, out_channels=129)),
    make("half vectors of AVX2", **LARGE | dict(channels=76)),
    make("half vectors of AVX-512", **LARGE | dict(channels=88)),
    make("far outside", **LARGE, spread=20.0),
    make("one axis", **LARGE | dict(size=(2900,), kernel=(3,))),
    make("three axes", **LARGE | dict(size=(11, 13, 12), kernel=(2, 3, 1))),
    make("empty batch", **LARGE | dict(batch=0)),
    make("few pixels, many outputs", batch=1, channels=16, out_channels=520, size=(11, 9), offset_groups=2),
]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("sample", SHARED, ids=lambda sample: sample.name)
def test_threads_that_share_blocks(sample, channels_last, set_threads):
    if channels_last and sample.tensors[0].dim() == 4:
        input, *rest = sample.tensors
        sample = replace(sample, tensors=(input.contiguous(memory_format=torch.channels_last), *rest))
    set_threads(16)
    assert_same(conv, sample, sample, 1e-10)
    for dtype, counts in ((torch.float32, (2, 3, 7, 16, 64)), (torch.bfloat16, (3, 16))):
        typed = sample.to(dtype)
        set_threads(1)
        expected = op_cases.results(conv.call, typed)
        for threads in counts:
            set_threads(threads)
            results = op_cases.results(conv.call, typed)
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), (dtype, threads)


@pytest.mark.parametrize("groups", [1, 2, 35])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_channels_last_weight_has_the_results_of_a_contiguous_one(dtype, groups):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 140, 5, 6), (70, 140 // groups, 2, 3), (1, 12, 6, 6), (1, 6, 6, 6)]
    input, weight, *fields = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    laid_out = weight.contiguous(memory_format=torch.channels_last)
    assert not laid_out.is_contiguous()
    settings = dict(padding=1, groups=groups)
    samples = (Sample("", (input, w, *fields, None), settings) for w in (weight, laid_out))
    both = (op_cases.results(conv.call, sample) for sample in samples)
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


# With AMX, bfloat16 is multiplied in tiles of 16 rows × 16 columns, 32 deep, if 8 divides the channels.
# Channels, outputs and pixels fill whole tiles, leave a partial one, or fill less than one.
TILES = [
    make("whole tiles", channels=64, out_channels=64, size=(8, 12), kernel=(3, 3), padding=1),
    make("parts of tiles", channels=72, out_channels=40, size=(7, 9), offset_groups=3),
    make("less than a tile", channels=8, out_channels=5, size=(4, 5)),
    make("one output", channels=104, out_channels=1, size=(5, 5), batch=1),
    make("several blocks", channels=264, out_channels=72, size=(6, 7), batch=1),
    make("a block of two panels, a block of one", channels=96, out_channels=40, size=(5, 9)),
    make("offset groups of 16", channels=96, out_channels=48, size=(5, 7), offset_groups=6, mask_groups=2),
    make("own points, groups of 3", channels=18, out_channels=30, groups=6, offset_groups=6, mask_groups=6),
    make("groups of 2", channels=64, out_channels=96, groups=32, size=(5, 6)),
    make("groups of 4 in and out", channels=128, out_channels=128, groups=32, size=(5, 6)),
    make("groups of 8", channels=64, out_channels=24, groups=8, size=(9, 7), offset_groups=2),
    make("groups of 16", channels=64, out_channels=136, groups=4, size=(7, 9)),
    make("groups of 24", channels=72, out_channels=48, groups=3, size=(7, 9), mask_groups=None),
    make("groups of 40", channels=80, out_channels=34, groups=2, size=(5, 7), bias=False),
    make("more rows than a tile of pixels", channels=16, out_channels=24, size=(19, 23), kernel=(1, 1)),
    make("one axis", channels=40, out_channels=24, size=(203,), kernel=(3,)),
    make("three axes", channels=32, out_channels=40, size=(4, 5, 6), kernel=(2, 3, 1)),
]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("sample", TILES, ids=lambda sample: sample.name)
def test_bfloat16_products_match_reference(sample, channels_last):
    """Each element differs by a few roundings of the sum of its terms' absolute values.

    Of an offset's gradient, whose terms have signs of their own, the largest sum counts.
    """
    sample = sample.to(torch.bfloat16)
    if channels_last and sample.tensors[0].dim() == 4:
        input, *rest = sample.tensors
        sample = replace(sample, tensors=(input.contiguous(memory_format=torch.channels_last), *rest))
    op_cases.results(conv.call, sample.map(lambda tensor: tensor * math.nan))  # what memory may hold
    exact = sample.to(torch.float64)
    absolute = op_cases.absolute_at(0, 1, 3, 4)(exact)
    actual, expected = op_cases.results(conv.call, sample), op_cases.results(conv.reference, exact)
    output = conv.reference(absolute)
    terms = op_cases.results(conv.reference, absolute, op_cases.ramp(output).abs())
    for index, (mine, true, sums) in enumerate(zip(actual, expected, terms, strict=True)):
        bound = sums.abs().max() if index == 3 else sums.abs()
        assert ((mine.double() - true).abs() <= 2**-7 * bound).all()


@both
def test_bias_gradient_does_not_depend_on_threads(function, cases, set_threads):
    """With one output channel, its sum is split among threads."""
    generator = torch.Generator().manual_seed(0)
    input, offset = torch.zeros(2, 1, 250, 200), torch.zeros(2, 2, 250, 200)
    weight, bias = torch.zeros(1, 1, 1, 1), torch.zeros(1, requires_grad=True)
    grad = torch.randn(2, 1, 250, 200, generator=generator) + 0.1
    results = []
    for count in (1, 2, 3, 7):
        set_threads(count)
        for laid_out in (grad, grad.contiguous(memory_format=torch.channels_last)):
            output = function(input, weight, offset, bias=bias)
            results.append(torch.autograd.grad(output, bias, laid_out)[0])
    assert all(torch.equal(result, results[0]) for result in results)
    torch.testing.assert_close(results[0], grad.double().sum().float().view(1), rtol=1e-5, atol=0)


@pytest.mark.slow  # compiles
def test_error_in_a_task_of_the_backward(tmp_path):
    """The other threads stop, instead of waiting for the turn of the task that failed."""
    options = ["-std=c++17", "-fPIC", "-shared", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    library = compile_cpp(ROOT / "tests/programs/failing_task.cpp", tmp_path / "failing_task.so", *options)
    program = (
        "import ctypes, sys, torch; torch.set_num_threads(4); run = ctypes.CDLL(sys.argv[1]).failing_task;"
        "print([run(task, step) for task in (0, 1, 99, 199) for step in (-1, 0, 1, 2)], run(-1, 0))"
    )
    command = [sys.executable, "-c", program, library]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == f"{[1] * 16} 0"


# Requirements for convolutions beyond test_ops.py: torch.func, scripting, export and mixed types


OPERATORS = [op for op in op_cases.operators() if op.name.startswith("deform_conv")]

every_op = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)


@every_op
@pytest.mark.parametrize("value", ["same", 1.5, None, [1.5]], ids=str)
def test_geometry_of_another_type(op, value):
    for name in ("stride", "dilation"):
        with pytest.raises(TypeError, match=rf"^{op.name}: {name}: .*got {re.escape(repr(value))}$"):
            op.call(Sample("", op.forms()[0].tensors, {name: value}))
    with pytest.raises(TypeError, match=f"^{op.name}: groups: expected an integer, got 1.0$"):
        op.call(Sample("", op.forms()[0].tensors, {"groups": 1.0}))


def test_too_many_strides_with_padding_by_name():
    input, weight, offset = torch.zeros(1, 2, 5, 5), torch.zeros(2, 2, 3, 3), torch.zeros(1, 18, 5, 5)
    with pytest.raises(RuntimeError, match=r"^deform_conv2d: stride: expected 2 values, got 3$"):
        dcnzoo.ops.deform_conv2d(input, weight, offset, stride=(1, 1, 1), padding="same")


def test_torchvisions_order_of_the_arguments():
    input, offset, weight = torch.zeros(2, 4, 5, 6), torch.zeros(2, 18, 5, 6), torch.zeros(3, 4, 3, 3)
    deform_conv2d = dcnzoo.ops.deform_conv2d
    for given in (weight, weight[:, :2]):  # the second in two groups
        with pytest.raises(RuntimeError, match=r"weight: .*got \(2, 18, 5, 6\).*torchvision"):
            deform_conv2d(input, offset, given, padding=1)
    with pytest.raises(TypeError, match=r"bias: .*got tuple .*input, weight, offset"):
        deform_conv2d(input, offset, weight, None, (1, 1), (1, 1))


@every_op
def test_script(op):
    """Scripts are saved, loaded and run, with one number or one per axis, forward and backward."""
    rank = op.forms()[0].tensors[1].dim() - 2
    samples = list(op.samples())
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(getattr(dcnzoo.ops, op.name)), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    parameters = inspect.signature(getattr(dcnzoo.ops, op.name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.name not in conv.NAMES}
    for sample in samples:
        leaves = sample.leaves()
        output = loaded(*leaves.tensors, **{**defaults, **sample.kwargs})
        torch.testing.assert_close(output, op.reference(sample))
        output.sum().backward()
        assert all(t.grad is not None for t in leaves.given)
    with pytest.raises(torch.jit.Error, match=f"{op.name}: weight: expected {rank + 2} dimensions"):
        broken = samples[0].tensors[1][0]
        loaded(samples[0].tensors[0], broken, *samples[0].tensors[2:], **{**defaults, **samples[0].kwargs})
