"""Every CUDA kernel against the CPU kernel, which tests/ops/test_ops.py compares with the references."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests import op_cases
from tests.helpers.not_finite import assert_pooling_reads_no_more
from tests.helpers.operators import largest, random_boxes
from tests.helpers.products import in_turn
from tests.op_cases import (
    Operator,
    Sample,
    dcnv3,
    dcnv4,
    deform_conv,
    deform_roi_pool,
    ms_deform_attn,
    ramp,
    roi_align,
)

# Larger for half types: columns and products are stored in half precision, which rounds the sums.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
NMS = torch.ops.dcnzoo.nms.default

# without deform_conv_transpose, which runs deform_conv's kernels
OPERATORS = {op.name: op for op in op_cases.operators() if "transpose" not in op.name}
FORMS = [(op, sample) for op in OPERATORS.values() for sample in op.forms()]
CASES = [
    (op, sample)
    for op in OPERATORS.values()
    for sample in (op.forms() if op.name in ("deform_conv1d", "deform_conv3d") else op.samples())
]


def parametrized(cases):
    return pytest.mark.parametrize(("op", "sample"), named(cases))


def named(cases):
    return [pytest.param(op, sample, id=f"{op.name}-{sample.name}") for op, sample in cases]


FIRST = named([(op, op.forms()[0]) for op in OPERATORS.values()])
first_forms = pytest.mark.parametrize(("op", "sample"), FIRST)


def converted(arguments, change) -> list:
    """The arguments, with ``change`` applied to every floating-point tensor."""
    return [change(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]


def calls(op: Operator, sample: Sample) -> Iterator[tuple[torch._ops.OpOverload, list]]:
    """Yield the registered forward and backward operators with arguments. The output's gradient is a ramp."""
    for overload, arguments in op.overload_calls(sample):
        arguments = converted(arguments, torch.Tensor.detach)
        if is_backward(overload):
            arguments[0] = ramp(arguments[0])
        yield overload, arguments


def is_backward(overload) -> bool:
    return overload.name().startswith("dcnzoo::_")


def run(kernels, overload, arguments) -> list[Tensor]:
    """Results of the CUDA kernel."""
    moved = [a.to(kernels.device) if isinstance(a, Tensor) else a for a in arguments]
    results = kernels(overload, *moved)
    return [r.cpu() for r in (results if isinstance(results, (tuple, list)) else [results])]


def on_the_cpu(overload, arguments) -> list[Tensor]:
    results = overload(*arguments)
    return list(results) if isinstance(results, (tuple, list)) else [results]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    finite = expected.isfinite()
    assert actual.shape == expected.shape and torch.equal(actual.isfinite(), finite)
    close = {"rtol": tolerance, "atol": tolerance * largest(expected[finite])}
    torch.testing.assert_close(actual[finite].double(), expected[finite].double(), **close)


def check(kernels, overload, arguments, tolerance) -> None:
    """Compare the results' dtypes, and in float64 their values, with those of the CPU kernel."""
    exact = on_the_cpu(overload, converted(arguments, torch.Tensor.double))
    same = on_the_cpu(overload, arguments)
    for actual, expected, alike in zip(run(kernels, overload, arguments), exact, same, strict=True):
        assert actual.dtype == alike.dtype
        assert_near(actual, expected, tolerance)


@parametrized(CASES)
def test_float64(kernels, op, sample):
    for overload, arguments in calls(op, sample):
        check(kernels, overload, arguments, TOLERANCE[torch.float64])


@in_turn("op, sample, dtype", FIRST, [torch.float32, torch.float16, torch.bfloat16])
def test_other_types(kernels, op, sample, dtype):
    for overload, arguments in calls(op, sample.to(dtype)):
        check(kernels, overload, arguments, TOLERANCE[dtype])


@in_turn(
    "rank, channels, groups, dtype, last",
    [pytest.param(rank, channels, id=f"{rank}d-{channels}") for channels in (4, 36) for rank in (1, 2, 3)],
    *([1, 2], [torch.float32, torch.bfloat16], [False, True]),
)
def test_four_channels_are_added_at_a_time(kernels, rank, channels, groups, dtype, last):
    sizes = dict(batch=3, channels=channels * groups, out_channels=6, offset_groups=groups, im2col_step=2)
    form = dict(size=deform_conv.SIZE[rank], kernel=deform_conv.KERNEL[rank], padding=1)
    sample = deform_conv.make("vectors", **sizes, **form).to(dtype)
    every = calls(OPERATORS[f"deform_conv{rank}d"], sample)
    backward, arguments = next(call for call in every if is_backward(call[0]))
    formats = {2: torch.channels_last, 3: torch.channels_last_3d} if last else {}
    format = formats.get(rank, torch.contiguous_format)
    arguments[1] = arguments[1].contiguous(memory_format=format)
    check(kernels, backward, arguments, TOLERANCE[dtype])
    assert run(kernels, backward, arguments)[0].is_contiguous(memory_format=format)


@in_turn("op, sample, dtype", FIRST, [torch.float16, torch.bfloat16])
def test_half_maps_with_float32_coordinates(kernels, op, sample, dtype):
    half = (0, 1, 4) if "conv" in op.name else (0,)
    tensors = [t.to(dtype if i in half else torch.float32) for i, t in enumerate(sample.tensors)]
    for overload, arguments in calls(op, replace(sample, tensors=tuple(tensors))):
        if is_backward(overload):
            arguments[0] = arguments[0].to(dtype)
        check(kernels, overload, arguments, TOLERANCE[dtype])


# Channels fill whole vectors of 16 bytes: in fewer threads than a warp, also not a power of two, or in more.
# The loop over points is unrolled for kernels of height 3 and for 4 points per level; others are included.
VECTORS = [
    (dcnv3, dict(kernel_size=3, group_channels=16, size=(5, 4))),
    (dcnv3, dict(kernel_size=3, group_channels=40, size=(3, 4), remove_center=True)),
    (dcnv3, dict(kernel_size=(2, 3), group_channels=8, stride=(2, 1), dilation=(1, 2), padding=(1, 2))),
    (dcnv3, dict(kernel_size=(3, 1), group=1, group_channels=264, batch=1, size=(4, 2))),
    (dcnv4, dict(kernel_size=3, group_channels=16, size=(5, 4))),
    (ms_deform_attn, dict(channels=32)),
    (ms_deform_attn, dict(channels=24, points=3, spread=3.0)),
]


@in_turn(
    "cases, settings, dtype",
    [pytest.param(*row, id=f"{row[0].NAME} {row[1]}") for row in VECTORS],
    [torch.float32, torch.float16, torch.bfloat16],
)
def test_channels_in_vectors(kernels, cases, settings, dtype):
    make = (lambda *a, **k: dcnv4.packed(dcnv3.make(*a, **k))) if cases is dcnv4 else cases.make
    sample = make("vectors", **settings).to(dtype)
    mixed = replace(sample, tensors=(sample.tensors[0], *(t.float() for t in sample.tensors[1:])))
    for given in (sample,) if dtype == torch.float32 else (sample, mixed):
        for overload, arguments in calls(OPERATORS[cases.NAME], given):
            if is_backward(overload):
                arguments[0] = arguments[0].to(dtype)
            check(kernels, overload, arguments, TOLERANCE[dtype])


def test_channels_last_with_groups(kernels):
    """The call has a bias, and the number of output pixels is not a multiple of 8."""
    sample = deform_conv.make("groups", groups=2, channels=8, out_channels=6, offset_groups=2, padding=(1, 0))
    for overload, arguments in calls(OPERATORS["deform_conv2d"], sample):
        places = [0, 1] if is_backward(overload) else [0]  # the gradient of the output too
        for place in places:
            arguments[place] = arguments[place].contiguous(memory_format=torch.channels_last)
        check(kernels, overload, arguments, TOLERANCE[torch.float64])


@first_forms
def test_memory_formats(kernels, op, sample):
    """Strided, channels-last and misaligned tensors. Results have the same memory format as on the CPU."""
    for change in op_cases.LAYOUTS:
        for overload, arguments in calls(op, sample):
            arguments = converted(arguments, change)
            check(kernels, overload, arguments, TOLERANCE[torch.float64])
            if change is op_cases.channels_last:
                both = run(kernels, overload, arguments), on_the_cpu(overload, arguments)
                for actual, expected in zip(*both, strict=True):
                    assert actual.stride() == expected.stride() or actual.numel() == 0


@first_forms
def test_only_wanted_gradients(kernels, op, sample):
    for overload, (*arguments, wanted) in calls(op, sample):
        if not isinstance(wanted, list) or not is_backward(overload):
            continue
        every = run(kernels, overload, [*arguments, [True] * len(wanted)])
        for index in range(len(wanted)):
            results = run(kernels, overload, [*arguments, [i == index for i in range(len(wanted))]])
            torch.testing.assert_close(results[index], every[index])
            assert [r.numel() > 0 for r in results] == [i == index for i in range(len(wanted))]


# without RoI pooling, which multiplies such values by zero
@parametrized([(op, op.forms()[0]) for op in OPERATORS.values() if "roi" not in op.name])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_values_that_are_not_finite(kernels, op, sample, value):
    """In any tensor or the output's gradient, Inf and NaN spread to the same results as on the CPU."""
    for overload, arguments in calls(op, sample):
        for place, argument in enumerate(arguments):
            if isinstance(argument, Tensor) and argument.is_floating_point():
                changed = argument.clone()
                changed.view(-1)[:: max(changed.numel() // 3, 1)] = value
                given = [*arguments[:place], changed, *arguments[place + 1 :]]
                check(kernels, overload, given, TOLERANCE[torch.float64])


@pytest.mark.parametrize(("images", "step"), [(0, 1), (1, 7), (33, 32), (5, 1)])
def test_ragged_chunks(kernels, images, step):
    sample = deform_conv.make("ragged", batch=images, size=(4, 3), channels=2, im2col_step=step)
    for overload, arguments in calls(OPERATORS["deform_conv2d"], sample):
        check(kernels, overload, arguments, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weight_gradient_is_rounded_once(kernels, dtype):
    """Two chunks nearly cancel, so that rounding each of them would lose the difference."""
    sample = deform_conv.make("chunks", channels=2, size=(3, 4), kernel=(1, 1), mask_groups=None)
    input, weight, offset, *_ = sample.to(dtype).tensors
    input, offset = (t[:1].repeat(2, 1, 1, 1) for t in (input, offset * 0))
    grad = torch.linspace(1, 2, 48, dtype=torch.float64).view(1, 4, 3, 4).to(dtype)
    grad = torch.cat([grad, -grad * 1.02]).to(dtype)
    backward, wanted = torch.ops.dcnzoo._deform_conv_backward.default, [False, True, False, False, False]
    arguments = [grad, input, weight, offset, None, [1, 1], [0, 0], [1, 1], 1, 1, wanted]
    exact = on_the_cpu(backward, converted(arguments, torch.Tensor.double))[1]
    error = (run(kernels, backward, arguments)[1].double() - exact).abs()
    assert (error <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


def test_levels_that_do_not_lie_within_the_value_read_as_zeros(kernels):
    op, sample = OPERATORS["ms_deform_attn"], ms_deform_attn.make("levels")
    value, locations, weights = sample.tensors
    only_first = weights.clone()
    only_first[:, :, :, 1] = 0
    expected = op.reference(replace(sample, tensors=(value, locations, only_first)))
    (forward, _), (backward, gradient), *_ = calls(op, sample)
    for size, start in (((3, 5), 60), ((3, 5), -1), ((2**40, 2**40), 0), ((0, 5), 54), ((-3, -5), 54)):
        starts = sample.kwargs["level_start_index"].clone()
        starts[1] = start
        levels = [torch.tensor([[6, 9], size]), starts]
        (output,) = run(kernels, forward, [value, *levels, locations, weights])
        assert_near(output, expected, TOLERANCE[torch.float64])
        wrong = [gradient[0], value, *levels, locations, weights, [True] * 3]
        grad_value, grad_locations, grad_weights = run(kernels, backward, wrong)
        assert not grad_value[:, 54:].any()
        assert not grad_locations[:, :, :, 1].any() and not grad_weights[:, :, :, 1].any()


@pytest.mark.parametrize("cases", [roi_align, deform_roi_pool], ids=lambda module: module.NAME)
def test_rois_without_anything_to_sample(kernels, cases):
    """RoIs without image, of zero area or off the map. CUDA kernels accept all; the CPU rejects some."""
    sample = cases.make("odd", rois=8)
    odd = [[2, 0, 0, 8, 8], [-1, 0, 0, 8, 8], [math.nan, 0, 0, 8, 8], [0, math.nan, 0, 8, 8]]
    odd += [[0, 0, 0, math.inf, 8], [0, 6, 6, 2, 2], [0, 90, 90, 99, 99], [0, 2, 2, 2, 2]]
    op = OPERATORS[cases.NAME]
    for overload, arguments in calls(op, sample):
        place = 2 if is_backward(overload) and cases is deform_roi_pool else 1
        arguments[place] = torch.tensor(odd, dtype=torch.float64)
        assert not any(result.any() for result in run(kernels, overload, arguments))
    for overload, arguments in calls(op, cases.make("none", rois=0)):
        check(kernels, overload, arguments, TOLERANCE[torch.float64])


# nms


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 64, 65, 130])
def test_nms_decides_as_on_the_cpu(kernels, count, offset):
    """Boxes of whole pixels meet the thresholds exactly, where rounding could decide."""
    for threshold in (1 / 3, 0.5, 0.7):
        for dtype in (torch.float32, torch.float64):
            boxes, scores = random_boxes(count, 12 + count, 12, dtype=dtype)
            boxes = boxes.round()
            (kept,) = run(kernels, NMS, [boxes, scores, threshold, offset])
            assert kept.dtype == torch.int64
            assert kept.tolist() == NMS(boxes, scores, threshold, offset).tolist()


def test_pooling_reads_no_more(kernels):
    assert_pooling_reads_no_more(kernels, kernels.device)
