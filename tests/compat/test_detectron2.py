"""detectron2's layers and its compiled module."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcnzoo.compat import detectron2

from .programs import V1, V2, compare, v1_leaves, v1_reference, v2_leaves, v2_reference


def test_detectron2_evaluates_with_pycocotools(provide, package):
    package(
        "detectron2.evaluation.fast_eval_api",
        "from detectron2 import _C\nclass COCOeval: pass\nclass COCOeval_opt(COCOeval): pass\n",
    )
    provide("detectron2._C")
    project = importlib.import_module("detectron2.evaluation.fast_eval_api")
    assert project.COCOeval_opt is project.COCOeval
    compiled = importlib.import_module("detectron2._C")
    assert "dcnzoo" in compiled.get_compiler_version() + compiled.get_cuda_version()


# Layers


@pytest.mark.parametrize("activation", [None, F.relu])
@pytest.mark.parametrize("norm", [None, nn.GroupNorm(2, 4).double()])
def test_detectron2_layers(norm, activation):
    def after(x):
        x = x if norm is None else norm(x)
        return x if activation is None else activation(x)

    input, offset, weight = v1_leaves()
    sides = dict(zip(("stride", "padding", "dilation", "groups", "deformable_groups"), V1, strict=True))
    layer = detectron2.DeformConv(8, 4, (3, 2), **sides, norm=norm, activation=activation).double()
    assert layer.bias is None
    layer.weight.data.copy_(weight)
    compare(layer, lambda i, o: after(v1_reference(i, o, weight)), input, offset)

    input, offset, mask, weight, bias = v2_leaves()
    sides = dict(zip(sides, V2, strict=True))
    layer = detectron2.ModulatedDeformConv(8, 4, (3, 2), **sides, norm=norm, activation=activation).double()
    assert not layer.bias.any()
    layer.load_state_dict({**layer.state_dict(), "weight": weight, "bias": bias})
    compare(layer, lambda i, o, m: after(v2_reference(i, o, m, weight, bias)), input, offset, mask)


def test_detectron2_layers_take_nothing():
    norm = nn.BatchNorm2d(4)
    layer = detectron2.ModulatedDeformConv(8, 4, 3, padding=1, bias=False, norm=norm, activation=F.relu)
    assert set(layer.state_dict()) == {"weight", *(f"norm.{name}" for name in norm.state_dict())}
    empty = torch.zeros(0, 8, 5, 6)
    assert layer(empty, torch.zeros(0, 18, 5, 6), torch.zeros(0, 9, 5, 6)).shape == (0, 4, 5, 6)
    with pytest.raises(ValueError, match="DeformConv: bias: expected False"):
        detectron2.DeformConv(8, 4, 3, bias=True)
