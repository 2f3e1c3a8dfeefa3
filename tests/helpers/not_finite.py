"""Inf and NaN in the arguments of operators."""

import itertools
import math

import torch

from tests import op_cases
from tests.helpers.operators import largest
from tests.op_cases import Sample, ramp, results

OPERATORS = op_cases.operators()
INF, NAN = math.inf, math.nan


def chosen(names: set[str]) -> list[tuple[op_cases.Operator, Sample]]:
    return [(op, s) for op in OPERATORS for s in op.samples() if s.name in names]


# every kernel: all ranks, whole panels and single channels, several groups in a panel, depthwise
CASES = chosen(
    {
        *("v2", "mask alone", "all groups differ", "32 channels", "48 channels", "one to one, 70 channels"),
        *("groups of 8", "groups of 8, not all in whole panels", "groups of 2, cut by offset groups"),
        *("groups of 4 in and out", "groups of 8 in and out"),
        *("without center", "asymmetric", "one level, one head"),
    }
)


def assert_same_values(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Check that the same elements are finite and equal. Others are Inf or NaN, by the order of a sum."""
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    actual, expected = actual[finite].double(), expected[finite].double()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * largest(expected))


def assert_reaches_what_the_formula_reads(
    op: op_cases.Operator, sample: Sample, dtype: torch.dtype, values: tuple[float, ...]
) -> None:
    """Put each of ``values`` into each tensor and into the output's gradient; compare with the reference."""
    generator = torch.Generator().manual_seed(1)
    sample = sample.to(dtype)
    output = op.call(sample)
    for place, value in itertools.product([*range(len(sample.tensors)), None], values):
        bad, grad = sample.map(torch.clone), ramp(output)
        changed = grad if place is None else bad.tensors[place]
        if changed is None:
            continue
        changed.view(-1)[int(torch.randint(changed.numel(), (), generator=generator))] = value
        mine, true = results(op.call, bad, grad), results(op.reference, bad.to(torch.float64), grad.double())
        for actual, expected in zip(mine, true, strict=True):
            assert_same_values(actual, expected, 1e-9 if dtype == torch.float64 else 1e-4)


def assert_pooling_reads_no_more(run, device: str = "cpu") -> None:
    """Check that samples beyond the centre of a border column read only it, and samples outside read nothing.

    Args:
        run: calls an overload of an operator.
    """
    ops = torch.ops.dcnzoo
    # samples at the middle minus half a pixel: (1.25, -0.5), (1.25, 3.9) and outside
    rois = torch.tensor([[0, -0.5, 1, 0.5, 2.5], [0, 4, 1, 4.8, 2.5], [0, 8, 8, 9, 9]], device=device)
    maps = torch.arange(16.0, device=device).view(1, 1, 4, 4)
    maps[..., 1:3] = INF
    offset, grad = torch.zeros(3, 2, 1, 1, device=device), torch.full((3, 1, 1, 1), INF, device=device)
    values = torch.tensor([5.0, 8.0, 0.0])
    reached = torch.zeros(4, 4)
    reached[1:3, [0, 3]] = INF
    slopes = torch.tensor([[0.0, INF], [0.0, INF], [0.0, 0.0]])

    pooled = run(ops.deform_roi_pool.default, maps, rois, offset, 1, 1, 1.0, 1, 0.1)
    backward = ops._deform_roi_pool_backward.default
    grad_maps, grad_offset = run(backward, grad, maps, rois, offset, 1.0, 1, 0.1, [True, True])
    assert torch.equal(pooled.flatten().cpu(), values)
    assert torch.equal(grad_maps[0, 0].cpu(), reached)
    assert torch.equal(grad_offset.view(3, 2).cpu(), slopes)
    pooled = run(ops.roi_align.default, maps, rois, 1, 1, 1.0, 1, True)
    grad_maps = run(ops._roi_align_backward.default, grad, rois, [1, 1, 4, 4], 1.0, 1, True)
    assert torch.equal(pooled.flatten().cpu(), values)
    assert torch.equal(grad_maps[0, 0].cpu(), reached)
    # the second of two samples is NaN
    maps = torch.tensor([[[[1.0, NAN]]]], device=device)
    roi = torch.tensor([[0, 0.0, 0, 2, 1]], device=device)
    assert run(ops.roi_align.default, maps, roi, 1, 1, 1.0, 2, True).isnan().all()
