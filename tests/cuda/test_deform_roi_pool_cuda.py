"""deform_roi_pool's CUDA kernels against the reference: output and both gradients."""

from __future__ import annotations

import pytest
import torch

from dcnzoo.ops import deform_roi_pool, reference

from ..test_deform_roi_pool import INF, NAN, RATIOS, assert_near, example, outputs_and_gradients

FORWARD = torch.ops.dcnzoo.deform_roi_pool.default
BACKWARD = torch.ops.dcnzoo._deform_roi_pool_backward.default
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def run(kernels, maps, rois, offset, sampling=(0.5, 0, 0.3), wanted=(True, True)):
    """Output and gradients of the kernels for the gradient that the reference gets as well."""
    tensors = [t.to(kernels.device) for t in (maps, rois, offset)]
    output = kernels(FORWARD, *tensors, *offset.shape[2:], *sampling)
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(maps.dtype)
    return output, *kernels(BACKWARD, grad.to(kernels.device), *tensors, *sampling, list(wanted))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("ratio", RATIOS)
def test_matches_reference(kernels, ratio, dtype):
    maps, rois, offset = example(rois=5)
    maps, rois = maps.to(dtype), rois.to(torch.promote_types(dtype, torch.float32))
    for given in (offset.to(dtype), offset.to(rois.dtype)):
        got = run(kernels, maps, rois, given, (0.5, ratio, 0.3))
        exact = [t.double() for t in (maps, rois, given)]
        want = outputs_and_gradients(reference.deform_roi_pool, *exact, (3, 2), 0.5, ratio, 0.3)
        assert [g.dtype for g in got] == [dtype, dtype, given.dtype]
        for g, w in zip(got, want, strict=True):
            assert_near(g.cpu(), w, TOLERANCE[dtype])


def test_more_bins_and_channels_than_threads(kernels):
    """The kernel of the offsets' gradient takes 32 bins and 8 channels at a time, in two blocks at most."""
    tensors = example(rois=13, size=(6, 7), channels=11)
    got = run(kernels, *tensors)
    want = outputs_and_gradients(deform_roi_pool, *tensors, (3, 2), 0.5, 0, 0.3)
    for g, w in zip(got, want, strict=True):
        assert_near(g.cpu(), w, 1e-12)


def test_only_wanted_gradients(kernels):
    tensors = example(rois=3)
    _, *both = run(kernels, *tensors)
    for wanted in ((True, False), (False, True), (False, False)):
        _, *gradients = run(kernels, *tensors, wanted=wanted)
        for gradient, every, want in zip(gradients, both, wanted, strict=True):
            assert torch.allclose(gradient, every) if want else gradient.shape == (0,)


def test_nothing_to_sample(kernels):
    maps, rois, offset = (t.float() for t in example(rois=7))
    odd = torch.tensor(
        [
            *([2, 0, 0, 8, 8], [-1, 0, 0, 8, 8], [NAN, 0, 0, 8, 8]),  # of no image
            *([0, NAN, 0, 8, 8], [0, 0, 0, INF, 8], [0, 6, 6, 2, 2], [0, 90, 90, 99, 99]),
        ]
    )
    for result in run(kernels, maps, odd, offset):
        assert not result.any()
    for value in (NAN, INF, -INF, 1e30):
        for result in run(kernels, maps.fill_(INF), rois, torch.full_like(offset, value)):
            assert not result.any()


def test_empty(kernels):
    maps, rois, offset = example()
    for tensors, shape in (
        ((maps, rois[:0], offset[:0]), (0, 3, 3, 2)),
        ((maps[:, :0], rois, offset), (7, 0, 3, 2)),
        ((maps[:0], rois, offset), (7, 3, 3, 2)),
    ):
        output, grad_maps, grad_offset = run(kernels, *tensors)
        assert output.shape == shape and not output.any()
        assert grad_maps.shape == tensors[0].shape and not grad_maps.any()
        assert grad_offset.shape == tensors[2].shape and not grad_offset.any()


def test_memory_formats(kernels):
    maps, rois, offset = example(rois=3)
    want = run(kernels, maps, rois, offset)
    for change in (
        lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    ):
        for g, w in zip(run(kernels, *map(change, (maps, rois, offset))), want, strict=True):
            torch.testing.assert_close(g, w)
