"""NMS and RoI pooling in ONNX, run by onnxruntime, compared with plain loops in float64."""

import pytest
import torch

import dcnzoo.ops
from dcnzoo.ops import reference, reference_boxes
from tests.helpers.graphs import assert_close, export, run
from tests.helpers.modules import module_of
from tests.helpers.operators import random_boxes
from tests.op_cases.deform_roi_pool import make

pytest.importorskip("onnx")


def example(rois=7, **kwargs):
    return make("example", rois, **kwargs).tensors


def calls(name, *all_arguments):
    """Return a module with calls of an operator on the same tensors: one export of several saves time."""
    function = getattr(dcnzoo.ops, name)
    return module_of(lambda *tensors: [function(*tensors, *arguments) for arguments in all_arguments])


def test_nms(tmp_path):
    path = str(tmp_path / "model.onnx")
    arguments = [(0.0, 1), (0.3, 0), (0.7, 1)]
    boxes, scores = random_boxes(20)
    export(calls("nms", *arguments), (boxes, scores), path, dynamic=[(0,), (0,)])
    for count in (1, 20, 130):
        boxes, scores = random_boxes(count, seed=count)
        scores[-1] = scores[0]  # equal scores keep their order
        for kept, (threshold, offset) in zip(run(path, boxes, scores), arguments, strict=True):
            assert kept.tolist() == reference_boxes.nms(boxes, scores, threshold, offset).tolist()


def test_stable_sort(tmp_path):
    path = str(tmp_path / "model.onnx")
    values = torch.tensor([[2.0, 1.0, 2.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    orders = [(0, False), (1, True)]
    model = module_of(lambda x: [x.sort(dim=dim, descending=down, stable=True) for dim, down in orders])
    export(model, (values,), path)
    expected = [part for pair in model(values) for part in pair]
    for actual, part in zip(run(path, values), expected, strict=True):
        assert torch.equal(torch.as_tensor(actual), part)


POOLING = {
    "roi_align": (2, [((3, 2), 0.5, ratio, "avg", aligned) for ratio, aligned in ((0, 0), (2, 1))]),
    "deform_roi_pool": (3, [((3, 2), 0.5, ratio, gamma) for ratio, gamma in ((0, 0.1), (3, -0.4))]),
}


@pytest.mark.parametrize(
    ("name", "opset"),
    [(name, opset) for name in POOLING for opset in (18, 19, 20)],
)
def test_pooling(name, opset, tmp_path):
    path, (count, settings) = str(tmp_path / "model.onnx"), POOLING[name]
    tensors = tuple(t.float() for t in example()[:count])
    dynamic = [(0, 2, 3), (0,), (0,)][:count]
    export(calls(name, *settings), tensors, path, opset, dynamic=dynamic)
    for case in ({}, dict(rois=11, size=(13, 8)), dict(rois=1)):
        exact = example(**case)[:count]
        for actual, arguments in zip(run(path, *(t.float() for t in exact)), settings, strict=True):
            expected = getattr(reference, name)(*exact, *(a for a in arguments if a != "avg"))
            assert_close(actual, expected)


def test_bins_of_whole_pixels_have_as_many_samples_as_pixels(tmp_path):
    """Rounding the size could add a sample to such a bin, or remove one."""
    maps = torch.randn(1, 2, 40, 50)
    start = torch.rand(60, 2) * 20
    pixels = torch.arange(1, 61)[:, None] % 6 + 1  # per bin
    extent = torch.tensor([3.0, 2.0]) * pixels
    rois = torch.cat([torch.zeros(60, 1), start, start + extent.flip(1)], 1)
    offset, path = torch.randn(60, 2, 3, 2), str(tmp_path / "model.onnx")
    export(calls("deform_roi_pool", [(3, 2)]), (maps, rois, offset), path)
    expected = dcnzoo.ops.deform_roi_pool(maps, rois, offset, (3, 2))
    torch.testing.assert_close(run(path, maps, rois, offset)[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_that_are_nowhere_give_zeros(ratio, tmp_path):
    maps, rois, offset = (t.float() for t in example())
    rois[0, 3] = float("nan")
    rois[1, 2] = float("inf")
    offset[2, 0, 1, 1] = float("nan")
    offset[3, 1, 2, 0] = -float("inf")
    rois[4, 3:] = rois[4, 1:3]  # zero size: with ratio 0, zero pixels give zero samples
    path = str(tmp_path / "model.onnx")
    export(calls("deform_roi_pool", ((3, 2), 0.5, ratio)), (maps, rois, offset), path)
    expected = dcnzoo.ops.deform_roi_pool(maps, rois, offset, (3, 2), 0.5, ratio)
    assert (expected[:2] == 0).all() and (expected[5] != 0).any()
    assert_close(run(path, maps, rois, offset)[0], expected)
