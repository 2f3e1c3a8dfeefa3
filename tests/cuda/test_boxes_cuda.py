"""CUDA kernels of nms and roi_align against their oracles."""

from __future__ import annotations

import pytest
import torch

from .. import oracles
from ..test_nms import random_boxes
from ..test_not_finite import assert_pooling_reads_no_more
from ..test_roi_align import MODES, example

NMS = torch.ops.dcnzoo.nms.default
FORWARD = torch.ops.dcnzoo.roi_align.default
BACKWARD = torch.ops.dcnzoo._roi_align_backward.default
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("count", [1, 64, 65, 130])
def test_nms_matches_loop(kernels, count, offset):
    for threshold in (0.3, 0.7):
        for dtype in (torch.float32, torch.float64):
            boxes, scores = random_boxes(count, dtype=dtype)
            kept = kernels(NMS, boxes.to(kernels.device), scores.to(kernels.device), threshold, offset)
            assert kept.tolist() == oracles.nms(boxes, scores, threshold, offset)


def test_nms_decides_as_on_the_cpu_where_rounding_could_decide(kernels):
    boxes, scores = random_boxes(200, 12, 10)
    boxes = boxes.round()
    for threshold in (1 / 3, 0.5, 0.6):
        kept = kernels(NMS, boxes.to(kernels.device), scores.to(kernels.device), threshold, 0)
        assert kept.tolist() == torch.ops.dcnzoo.nms(boxes, scores, threshold, 0).tolist()


def test_nms_without_boxes(kernels):
    empty = torch.zeros(0, 4, device=kernels.device)
    kept = kernels(NMS, empty, empty[:, 0], 0.5, 0)
    assert kept.shape == (0,) and kept.dtype == torch.int64


def run_roi_align(kernels, maps, rois, size, mode, dtype):
    """Output and gradient of the kernels for the gradient that the oracle gets as well."""
    arguments = (0.5, mode["sampling_ratio"], int(mode["pool_mode"] == "avg"), mode["aligned"])
    maps, rois = maps.to(kernels.device, dtype), rois.to(kernels.device)
    output, argmax_y, argmax_x = kernels(FORWARD, maps, rois, *size, *arguments)
    grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(dtype)
    gradient = kernels(
        BACKWARD, grad.to(kernels.device), rois, argmax_y, argmax_x, list(maps.shape), *arguments
    )
    assert output.dtype == gradient.dtype == dtype
    return output, gradient, grad


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=lambda m: "-".join(map(str, m.values())))
def test_roi_align_matches_loop(kernels, mode, dtype):
    maps, rois = example(rois=5)
    rounded = maps.to(dtype).double().requires_grad_()
    exact = rois if dtype == torch.float64 else rois.float()
    output, gradient, grad = run_roi_align(kernels, maps, exact, (3, 2), mode, dtype)
    expected = oracles.roi_align(rounded, rois, (3, 2), 0.5, **mode)
    expected.backward(grad.double())
    for actual, true in ((output, expected.detach()), (gradient, rounded.grad)):
        tolerance = TOLERANCE[dtype] * max(1.0, true.abs().max().item())
        torch.testing.assert_close(actual.cpu().double(), true, rtol=TOLERANCE[dtype], atol=tolerance)


@pytest.mark.parametrize("mode", [MODES[0], MODES[-1]], ids=["avg", "max"])
def test_roi_align_edges(kernels, mode):
    maps, rois = example(rois=4)
    inf, nan = float("inf"), float("nan")
    odd = torch.tensor(
        [[2, 0, 0, 8, 8], [-1, 0, 0, 8, 8], [nan, 0, 0, 8, 8], [0, nan, 0, 8, 8], [0, 0, 0, inf, 8]]
    )
    output, gradient, _ = run_roi_align(kernels, maps, odd, (2, 3), mode, torch.float32)
    assert (output == 0).all() and (gradient == 0).all()
    output, gradient, _ = run_roi_align(kernels, maps, rois[:0], (2, 3), mode, torch.float32)
    assert output.shape == (0, 3, 2, 3) and (gradient == 0).all()
    strided = maps.contiguous(memory_format=torch.channels_last)
    for same in (strided, maps.transpose(0, 3).contiguous().transpose(0, 3)):
        torch.testing.assert_close(
            run_roi_align(kernels, same, rois, (2, 3), mode, torch.float64)[0],
            run_roi_align(kernels, maps, rois, (2, 3), mode, torch.float64)[0],
        )


def test_pooling_reads_no_more(kernels):
    assert_pooling_reads_no_more(kernels, kernels.device)
