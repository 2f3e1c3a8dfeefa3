"""``dcnzoo.compat.torchvision`` against torchvision's compiled operators: ``make test-others``."""

import inspect

import pytest
import torch

from dcnzoo.compat.torchvision import DeformConv2d, deform_conv2d, roi_align

from ..test_compat_torchvision import GEOMETRY, maps_and_boxes, tensors

ops = pytest.importorskip("torchvision.ops", exc_type=ImportError)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("offset_groups", [1, 2, 4])
@pytest.mark.parametrize("with_mask", [True, False])
def test_equals_torchvision(groups, offset_groups, with_mask):
    input, offset, weight, bias, mask = tensors(groups, offset_groups)
    leaves = [t.requires_grad_() for t in (input, offset, weight, bias, *([mask] if with_mask else []))]
    results = []
    for function in (deform_conv2d, ops.deform_conv2d):
        output = function(input, offset, weight, bias, **GEOMETRY, mask=mask if with_mask else None)
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


def test_layer_equals_torchvision():
    arguments = (4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2)
    ours, theirs = DeformConv2d(*arguments), ops.DeformConv2d(*arguments)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    input, offset, _, _, mask = tensors(dtype=torch.float32)
    torch.testing.assert_close(ours(input, offset, mask), theirs(input, offset, mask))
    results = []
    names = list(inspect.signature(ops.DeformConv2d).parameters)
    assert list(inspect.signature(DeformConv2d).parameters)[: len(names)] == names
    for function in (deform_conv2d, ops.deform_conv2d):
        parameters = inspect.signature(function).parameters.values()
        results.append([(p.name, p.default) for p in parameters])
    assert results[0] == results[1]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [-1, 2])
def test_roi_align_equals_torchvision(aligned, samples):
    input, boxes = maps_and_boxes()
    arguments = (input.requires_grad_(), boxes, (2, 3), 0.8, samples, aligned)
    results = []
    for function in (roi_align, ops.roi_align):
        output = function(*arguments)
        results.append([output, *torch.autograd.grad(output.square().sum(), input)])
    torch.testing.assert_close(*results)
