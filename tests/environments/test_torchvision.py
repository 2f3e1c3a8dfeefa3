"""dcnzoo beside a torchvision that fits torch: ``nox -s others``."""

import inspect

import pytest
import torch

from dcnzoo.compat.torchvision import DeformConv2d, deform_conv2d
from dcnzoo.utils import torchvision_schemas
from tests.helpers.modules import assert_same
from tests.helpers.operators import INVENTED_DEVICE
from tests.helpers.processes import run_code
from tests.helpers.torchvision import GEOMETRY, tensors

ops = pytest.importorskip("torchvision.ops", exc_type=ImportError)
if torchvision_schemas.load_error():
    pytest.skip("torchvision does not fit torch here", allow_module_level=True)


def test_signatures():
    names = list(inspect.signature(ops.DeformConv2d).parameters)
    assert list(inspect.signature(DeformConv2d).parameters)[: len(names)] == names
    ours, theirs = (inspect.signature(f).parameters.values() for f in (deform_conv2d, ops.deform_conv2d))
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("groups", [(1, 2), (2, 2), (4, 1)])  # (groups of the weight, groups of the offsets)
@pytest.mark.parametrize("with_mask", [True, False])
def test_function(groups, with_mask):
    input, offset, weight, bias, mask = tensors(*groups)
    leaves = [input, offset, weight, bias]
    if with_mask:
        leaves.append(mask)
    leaves = [tensor.requires_grad_() for tensor in leaves]
    options = dict(bias=bias, mask=mask if with_mask else None, **GEOMETRY)
    output, expected = (f(input, offset, weight, **options) for f in (deform_conv2d, ops.deform_conv2d))
    assert_same(output, expected, leaves)


def test_layer():
    arguments = (4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2)
    ours, theirs = DeformConv2d(*arguments), ops.DeformConv2d(*arguments)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    input, offset, _, _, mask = tensors(dtype=torch.float32)
    torch.testing.assert_close(ours(input, offset, mask), theirs(input, offset, mask))


@pytest.mark.parametrize("first", ["torchvision", "dcnzoo.models"])
def test_its_operators_work_beside_openmmlab(first):
    code = f"""
import torch
import {first}
import dcnzoo.models, torchvision
boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]])
print(torchvision.ops.nms(boxes, torch.tensor([0.3, 0.5, 0.1]), 0.5).tolist())
offset, weight = torch.zeros(1, 18, 3, 3), torch.ones(1, 1, 3, 3)
print(torchvision.ops.deform_conv2d(torch.ones(1, 1, 5, 5), offset, weight).sum().item())
"""
    assert run_code(code).splitlines()[-2:] == ["[1, 2]", "81.0"]


def test_a_device_for_which_torchvision_has_no_kernel():
    code = f"""{INVENTED_DEVICE}
import dcnzoo
from torchvision.ops import deform_conv2d
has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
names = ("torchvision::deform_conv2d", "torchvision::_deform_conv2d_backward")
assert not any(has_kernel(name, "XPU") for name in names)
dcnzoo.provide("torchvision")
assert all(has_kernel(name, "XPU") for name in names)
leaves = [torch.rand(1, 3, 5, 6), torch.randn(1, 12, 5, 7), torch.randn(4, 3, 3, 2), torch.randn(4)]
mask = torch.rand(1, 6, 5, 7)
on_cpu = [tensor.requires_grad_() for tensor in leaves]
expected = deform_conv2d(*on_cpu, padding=1, mask=mask)
leaves = [Invented(tensor.detach()).requires_grad_() for tensor in leaves]
output = deform_conv2d(*leaves, padding=1, mask=Invented(mask))
gradients = torch.autograd.grad(output, leaves, Invented(torch.ones(output.shape)))
expected = expected.detach(), *torch.autograd.grad(expected.sum(), on_cpu)
for result, right in zip((output.detach(), *gradients), expected, strict=True):
    assert result.device.type == "invented" and torch.allclose(result.on_cpu, right, atol=1e-5)
"""
    run_code(code)
