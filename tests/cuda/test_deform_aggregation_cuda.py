"""The CUDA kernels of dcnv3, dcnv4 and ms_deform_attn against the reference: output and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ..op_cases import dcnv3 as dcnv3_cases
from ..op_cases import dcnv4 as dcnv4_cases
from ..op_cases import ms_deform_attn as attention_cases

# The half types' sums are in float32; gradients are rounded once.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def cases(*chosen):
    every = {m.NAME: {s.name: s for s in m.samples()} for m in (dcnv3_cases, dcnv4_cases, attention_cases)}
    modules = {m.NAME: m for m in (dcnv3_cases, dcnv4_cases, attention_cases)}
    names = chosen or [(op, name) for op, samples in every.items() for name in samples]
    return pytest.mark.parametrize(
        ("op", "sample"),
        [(modules[op], every[op][name]) for op, name in names],
        ids=[f"{op}-{name}" for op, name in names],
    )


FEW = (("dcnv3", "without center"), ("dcnv4", "asymmetric"), ("ms_deform_attn", "32 channels"))


def arguments_of(op, tensors, sample, device):
    """The operator's arguments with ``tensors`` in place of the sample's."""
    if op is not attention_cases:
        return [*tensors, *dcnv3_cases.geometry(sample)]
    value, locations, weights = tensors
    return [value, *(t.to(device) for t in sample.kwargs.values()), locations, weights]


def run(kernels, op, sample, tensors, grad, wanted=None):
    """Output, and the gradients that are wanted (all)."""
    forward = getattr(torch.ops.dcnzoo, op.NAME).default
    backward = getattr(torch.ops.dcnzoo, f"_{op.NAME}_backward").default
    tensors = [t.to(kernels.device) for t in tensors]
    arguments = arguments_of(op, tensors, sample, kernels.device)
    wanted = wanted or [True] * len(tensors)
    return kernels(forward, *arguments), kernels(backward, grad.to(kernels.device), *arguments, wanted)


def exact(op, sample, grad):
    leaves = sample.to(torch.float64).leaves()
    output = op.reference(leaves)
    return output.detach(), torch.autograd.grad(output, leaves.tensors, grad.double())


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.cpu().double(), expected, rtol=tolerance, atol=tolerance * max(1.0, largest)
    )


def check(kernels, op, sample, dtype, field_dtype=None) -> None:
    first, *fields = sample.to(dtype).tensors
    sample = replace(sample, tensors=(first, *(f.to(field_dtype or dtype) for f in fields)))
    shape = op.reference(sample).shape
    grad = torch.linspace(-1, 1, shape.numel(), dtype=torch.float64).view(shape).to(dtype)
    expected, gradients = exact(op, sample, grad)
    output, results = run(kernels, op, sample, sample.tensors, grad)
    assert output.dtype == dtype
    assert_near(output, expected, TOLERANCE[dtype])
    for result, true, tensor in zip(results, gradients, sample.tensors, strict=True):
        assert result.dtype == tensor.dtype
        assert_near(result, true, TOLERANCE[dtype])


@cases()
def test_matches_reference(kernels, op, sample):
    check(kernels, op, sample, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@cases(*FEW)
def test_other_types(kernels, op, sample, dtype):
    check(kernels, op, sample, dtype)


@cases(*FEW)
def test_float32_fields_with_half_maps(kernels, op, sample):
    check(kernels, op, sample, torch.bfloat16, torch.float32)


def test_offset_and_mask_of_different_types(kernels):
    input, offset, mask = dcnv3_cases.make("types").to(torch.float16).tensors
    sample = dcnv3_cases.Sample("", (input, offset.float(), mask), dcnv3_cases.make("types").kwargs)
    grad = torch.ones_like(dcnv3_cases.reference(sample))
    expected, gradients = exact(dcnv3_cases, sample, grad)
    output, results = run(kernels, dcnv3_cases, sample, sample.tensors, grad)
    assert_near(output, expected, TOLERANCE[torch.float16])
    assert [r.dtype for r in results] == [torch.float16, torch.float32, torch.float16]
    for result, true in zip(results, gradients, strict=True):
        assert_near(result, true, TOLERANCE[torch.float16])


def test_memory_that_is_not_aligned_or_not_contiguous(kernels):
    sample = dcnv3_cases.make("memory", group_channels=16).to(torch.float32)
    grad = torch.ones_like(dcnv3_cases.reference(sample))
    expected, gradients = exact(dcnv3_cases, sample, grad)
    for change in (
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
        lambda t: t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    ):
        output, results = run(kernels, dcnv3_cases, sample, map(change, sample.tensors), change(grad))
        assert_near(output, expected, TOLERANCE[torch.float32])
        for result, true in zip(results, gradients, strict=True):
            assert_near(result, true, TOLERANCE[torch.float32])


@cases(*FEW)
def test_only_wanted_gradients(kernels, op, sample):
    grad = torch.ones_like(op.reference(sample))
    count = len(sample.tensors)
    _, every = run(kernels, op, sample, sample.tensors, grad)
    for index in range(count):
        wanted = [i == index for i in range(count)]
        _, results = run(kernels, op, sample, sample.tensors, grad, wanted)
        torch.testing.assert_close(results[index], every[index])
        assert [r.numel() > 0 for r in results] == wanted


def test_levels_that_do_not_lie_within_the_value_read_as_zeros(kernels):
    sample = attention_cases.make("levels")
    value, locations, weights = sample.tensors
    starts = sample.kwargs["level_start_index"]
    only_first = weights.clone()
    only_first[:, :, :, 1] = 0
    expected = attention_cases.reference(
        attention_cases.Sample("", (value, locations, only_first), sample.kwargs)
    )
    grad = torch.ones_like(expected)
    for size, start in (((3, 5), 60), ((3, 5), -1), ((2**40, 2**40), 0), ((0, 5), 54), ((-3, -5), 54)):
        levels = {"spatial_shapes": torch.tensor([[6, 9], size]), "level_start_index": starts.clone()}
        levels["level_start_index"][1] = start
        wrong = attention_cases.Sample("", sample.tensors, levels)
        output, (grad_value, grad_locations, grad_weights) = run(
            kernels, attention_cases, wrong, sample.tensors, grad
        )
        assert_near(output, expected, TOLERANCE[torch.float64])
        assert (grad_value[:, 54:] == 0).all()
        assert (grad_locations[:, :, :, 1] == 0).all() and (grad_weights[:, :, :, 1] == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_offsets_that_are_no_places(kernels, bad):
    sample = dcnv3_cases.make("no place", kernel_size=3)
    input, offset, mask = sample.tensors
    offset, mask = offset.clone(), mask.clone()
    offset[0, 0, 0, :2], mask[0, 0, 0, 0] = bad, float("nan")
    without = mask.clone()
    without[0, 0, 0, 0] = 0
    expected = dcnv3_cases.reference(dcnv3_cases.Sample("", (input, offset, without), sample.kwargs))
    output, results = run(kernels, dcnv3_cases, sample, (input, offset, mask), torch.ones_like(expected))
    group = sample.kwargs["group_channels"]  # what is read there is zero; times NaN that is NaN
    assert output[0, 0, 0, :group].isnan().all()
    output[0, 0, 0, :group] = expected[0, 0, 0, :group].to(output)
    assert_near(output, expected, TOLERANCE[torch.float64])
    assert all(r.isfinite().all() for r in results)
    assert (results[1][0, 0, 0, :2] == 0).all() and results[2][0, 0, 0, 0] == 0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@cases(*FEW)
def test_values_that_are_not_finite(kernels, op, sample, value):
    """In the map, in offsets or locations, in weights, in the output's gradient: as in the reference."""
    for place in range(len(sample.tensors) + 1):
        bad = sample.map(torch.clone)
        grad = torch.linspace(-1, 1, op.reference(bad).numel(), dtype=torch.float64)
        changed = (*bad.tensors, grad)[place].view(-1)
        changed[:: max(changed.numel() // 3, 1)] = value
        grad = grad.view(op.reference(bad).shape)
        expected, gradients = exact(op, bad, grad)
        output, results = run(kernels, op, bad, bad.tensors, grad)
        for result, true in zip((output, *results), (expected, *gradients), strict=True):
            finite = true.isfinite()
            assert torch.equal(result.cpu().isfinite(), finite)
            torch.testing.assert_close(result.cpu()[finite], true[finite], rtol=1e-10, atol=1e-10)
