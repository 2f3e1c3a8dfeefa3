"""deform_conv's CUDA kernels against the reference: output and every gradient."""

from __future__ import annotations

import pytest
import torch

from ..op_cases import deform_conv as cases

FORWARD = torch.ops.dcnzoo.deform_conv.default
BACKWARD = torch.ops.dcnzoo._deform_conv_backward.default

# Half types: columns and products are stored in them, so that their rounding is in the sums.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

SAMPLES = [
    *cases.samples(),
    cases.make("rank 1", size=(9,), kernel=(3,), padding=1, stride=2),
    cases.make("rank 3", size=(4, 5, 6), kernel=(2, 3, 1), padding=(1, 0, 2), offset_groups=2, mask_groups=3),
    cases.make("rank 3 v1", size=(4, 3, 5), kernel=(1, 2, 2), dilation=(1, 2, 1), mask_groups=None),
]


def arguments_of(sample) -> list:
    rank = sample.tensors[1].dim() - 2
    lists = [
        sample.kwargs.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    ]
    lists = [[value] * rank if isinstance(value, int) else list(value) for value in lists]
    return [*lists, sample.kwargs.get("groups", 1), sample.kwargs.get("im2col_step")]


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.cpu().double(), expected, rtol=tolerance, atol=tolerance * max(1.0, largest)
    )


def check(kernels, sample, dtype) -> None:
    sample = sample.to(dtype)
    oracle = sample.to(torch.float64).leaves()
    expected = cases.reference(oracle)
    grad = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape).to(dtype)
    gradients = torch.autograd.grad(expected, oracle.given, grad.double())
    mine = sample.map(lambda t: t.to(kernels.device))
    output = kernels(FORWARD, *mine.tensors, *arguments_of(sample))
    assert output.dtype == dtype
    assert_near(output, expected.detach(), TOLERANCE[dtype])
    wanted = [t is not None for t in sample.tensors]
    results = kernels(BACKWARD, grad.to(kernels.device), *mine.tensors[:4], *arguments_of(sample), wanted)
    given = [result for result, want in zip(results, wanted, strict=True) if want]
    for result, true, tensor in zip(given, gradients, sample.given, strict=True):
        assert result.dtype == tensor.dtype
        assert_near(result, true, TOLERANCE[dtype])
    assert all(r.numel() == 0 for r, want in zip(results, wanted, strict=True) if not want)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_matches_reference(kernels, sample):
    check(kernels, sample, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["v2", "all groups differ", "batch 5, step 2", "rank 3"])
def test_other_types(kernels, name, dtype):
    check(kernels, next(s for s in SAMPLES if s.name == name), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weight_gradient_is_rounded_once(kernels, dtype):
    """Chunks that nearly cancel each other: the difference is not lost in the rounding of each."""
    sample = cases.make("chunks", channels=2, size=(3, 4), kernel=(1, 1), mask_groups=None)
    input, weight, offset, *_ = sample.to(dtype).tensors
    input, offset = (t[:1].repeat(2, 1, 1, 1) for t in (input, offset * 0))
    grad = torch.linspace(1, 2, 48, dtype=torch.float64).view(1, 4, 3, 4).to(dtype)
    grad = torch.cat([grad, -grad * 1.02]).to(dtype)
    leaf = weight.double().requires_grad_()
    output = cases.reference(cases.Sample("chunks", (input.double(), leaf, offset.double(), None, None)))
    (exact,) = torch.autograd.grad(output, leaf, grad.double())
    on_device = [t.to(kernels.device) for t in (grad, input, weight, offset)]
    wanted = [False, True, False, False, False]
    _, actual, *_ = kernels(BACKWARD, *on_device, None, [1, 1], [0, 0], [1, 1], 1, 1, wanted)
    error = (actual.cpu().double() - exact).abs()
    assert (error <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", range(6), ids=["input", "weight", "offset", "mask", "bias", "grad"])
def test_values_that_are_not_finite(kernels, place, value):
    sample = cases.make("not finite", channels=8, groups=2, size=(4, 5), padding=1, spread=3.0)
    grad = torch.linspace(-1, 1, cases.reference(sample).numel(), dtype=torch.float64)
    changed = (*sample.tensors, grad)[place].view(-1)
    changed[:: max(changed.numel() // 3, 1)] = value
    leaves = sample.leaves()
    expected = cases.reference(leaves)
    grad = grad.view(expected.shape)
    gradients = torch.autograd.grad(expected, leaves.given, grad)
    mine = [t.to(kernels.device) for t in sample.tensors]
    output = kernels(FORWARD, *mine, *arguments_of(sample))
    results = kernels(BACKWARD, grad.to(kernels.device), *mine[:4], *arguments_of(sample), [True] * 5)
    for result, true in zip((output, *results), (expected.detach(), *gradients), strict=True):
        finite = true.isfinite()
        assert torch.equal(result.cpu().isfinite(), finite)
        torch.testing.assert_close(result.cpu()[finite], true[finite], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_fields_with_half_maps(kernels, dtype):
    input, weight, offset, mask, bias = cases.make("half", padding=1).tensors
    half = [t.to(dtype) for t in (input, weight, bias)]
    fields = [t.float().to(kernels.device) for t in (offset, mask)]
    on_device = [t.to(kernels.device) for t in half]
    arguments = ([1, 1], [1, 1], [1, 1], 1, None)
    output = kernels(FORWARD, on_device[0], on_device[1], *fields, on_device[2], *arguments)
    exact = [t.double() for t in (half[0], half[1], offset.float(), mask.float(), half[2])]
    expected = cases.reference(cases.Sample("", tuple(exact), {"padding": 1}))
    assert output.dtype == dtype
    assert_near(output, expected, TOLERANCE[dtype])
    results = kernels(
        BACKWARD, torch.ones_like(output), on_device[0], on_device[1], *fields, *arguments, [True] * 5
    )
    assert [r.dtype for r in results] == [dtype, dtype, torch.float32, torch.float32, dtype]


@pytest.mark.parametrize("images, step", [(0, 1), (1, 7), (33, 32), (5, 1)])
def test_ragged_chunks(kernels, images, step):
    sample = cases.make("ragged", batch=images, size=(4, 3), channels=2, out_channels=3, im2col_step=step)
    check(kernels, sample, torch.float64)


def test_memory_formats(kernels):
    sample = cases.make("formats", padding=1)
    arguments = arguments_of(sample)
    expected = cases.reference(sample)
    for change in (
        lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    ):
        changed = sample.map(lambda t: change(t.to(kernels.device)))  # noqa: B023
        output = kernels(FORWARD, *changed.tensors, *arguments)
        assert_near(output, expected, TOLERANCE[torch.float64])
        results = kernels(
            BACKWARD, change(torch.ones_like(output)), *changed.tensors[:4], *arguments, [True] * 5
        )
        last = changed.tensors[0].is_contiguous(memory_format=torch.channels_last)
        for map_like in (output, results[0]):
            assert map_like.is_contiguous(memory_format=torch.channels_last) == last
            assert map_like.is_contiguous() != last
        plain = sample.map(lambda t: t.to(kernels.device))
        grad = torch.ones_like(output, memory_format=torch.contiguous_format)
        for result, other in zip(
            results, kernels(BACKWARD, grad, *plain.tensors[:4], *arguments, [True] * 5), strict=True
        ):
            assert_near(result, other.cpu().double(), TOLERANCE[torch.float64])


def test_only_wanted_gradients(kernels):
    sample = cases.make("wanted", padding=1, offset_groups=2, mask_groups=3)
    mine = sample.map(lambda t: t.to(kernels.device))
    grad = torch.ones_like(kernels(FORWARD, *mine.tensors, *arguments_of(sample)))
    every = kernels(BACKWARD, grad, *mine.tensors[:4], *arguments_of(sample), [True] * 5)
    for index in range(5):
        wanted = [i == index for i in range(5)]
        results = kernels(BACKWARD, grad, *mine.tensors[:4], *arguments_of(sample), wanted)
        torch.testing.assert_close(results[index], every[index])
        assert [r.numel() > 0 for r in results] == wanted


def test_border(kernels):
    """At -1 and at the size a sample is zero and has no gradient; in between it fades out."""
    ones = torch.ones(1, 1, 1, 4, dtype=torch.float64, device=kernels.device)
    offset = torch.zeros(1, 2, 1, 4, dtype=torch.float64, device=kernels.device)
    offset[0, 1, 0] = torch.tensor([-1.0, -1.5, 1.5, 1.0], dtype=torch.float64)  # x at -1, -0.5, 3.5, 4
    tensors = (ones, ones[..., :1], offset, None, None)
    arguments = ([1, 1], [0, 0], [1, 1], 1, None)
    assert kernels(FORWARD, *tensors, *arguments).flatten().tolist() == [0, 0.5, 0.5, 0]
    grads = kernels(BACKWARD, ones, *tensors[:4], *arguments, [True, True, True, False, False])
    assert grads[2][0, 1, 0].tolist() == [0, 1, -1, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_points_that_are_nowhere_contribute_nothing(kernels, value):
    sample = cases.make("nowhere", padding=1).map(lambda t: t.to(kernels.device))
    infinite = torch.full_like(sample.tensors[0], float("inf"))
    offset = torch.full_like(sample.tensors[2], value)
    tensors = (infinite, sample.tensors[1], offset, sample.tensors[3])
    output = kernels(FORWARD, *tensors, None, *arguments_of(sample))
    assert (output == 0).all()
    wanted = [True, True, True, True, False]
    for gradient in kernels(BACKWARD, torch.ones_like(output), *tensors, *arguments_of(sample), wanted)[:4]:
        assert (gradient == 0).all()
