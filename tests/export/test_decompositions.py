"""dcnzoo's operators in operators of torch, compared with the oracle in float64."""

import re

import pytest
import torch
from torch import nn

import dcnzoo.ops
from dcnzoo.export import decompositions
from dcnzoo.layers import PackedDeformConv2d
from tests.helpers.products import in_turn
from tests.op_cases import operators

NAMES = {overload.name().partition("::")[2] for overload in decompositions()}  # without the number of axes
OPERATORS = [op for op in operators() if re.sub(r"\dd$", "", op.name) in NAMES]
CASES = [
    pytest.param(op, sample, id=f"{op.name} {sample.name}") for op in OPERATORS for sample in op.samples()
]


class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
    """Replaces the operators as ``run_decompositions`` does, and notes the ranks of all tensors."""

    def __init__(self):
        super().__init__()
        self.table, self.remaining, self.ranks, self.called = decompositions(), set(), set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.table:
            with self:
                result = self.table[function](*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
            self.remaining.add(function)
        self.called.add(function)
        result = function(*args, **(kwargs or {}))
        self.ranks.update(
            each.dim() for each in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(each)
        )
        return result


def test_each_operator_has_a_translation_or_stays():
    assert {re.sub(r"\dd$", "", op.name) for op in OPERATORS} == NAMES
    assert {op.name for op in operators()} - {op.name for op in OPERATORS} == {"roi_align", "deform_roi_pool"}


@in_turn("op, sample, dtype", CASES, [torch.float64, torch.float32])
def test_as_the_oracle(op, sample, dtype):
    expected = op.reference(sample.to(torch.float64))
    mode = Recorded()
    with torch.no_grad(), mode:
        actual = op.call(sample.to(dtype))
    assert actual.dtype == dtype
    limit = 1e-9 if dtype == torch.float64 else 2e-5
    is_empty = not all(t.numel() for t in sample.tensors if t is not None)
    assert torch.ops.aten.__and__.Tensor not in mode.called, "coremltools lacks it"
    assert bool(mode.remaining) == is_empty
    torch.testing.assert_close(
        actual.double(), expected, atol=limit * max([1, *expected.abs().flatten().tolist()]), rtol=0
    )


def test_no_tensor_has_more_than_five_axes():
    layer = PackedDeformConv2d(4, 6, 3, padding=1, modulated=True, offset_groups=2).eval()
    with torch.no_grad(), Recorded() as mode:
        layer(torch.randn(2, 4, 9, 11))
    assert not mode.remaining and max(mode.ranks) <= 5


def test_nan_samples_zero():
    x, weight, offset = torch.randn(1, 2, 5, 6), torch.randn(3, 2, 3, 3), torch.zeros(1, 18, 3, 4)
    offset[0, 4, 1, 2], offset[0, 7, 0, 0] = torch.nan, 1e30
    with Recorded():
        actual = dcnzoo.ops.deform_conv2d(x, weight, offset)
    torch.testing.assert_close(actual, dcnzoo.ops.deform_conv2d(x, weight, offset), atol=1e-5, rtol=1e-5)


def test_a_program_with_dynamic_sizes():
    model = nn.Sequential(PackedDeformConv2d(3, 6, 3, padding=1, modulated=True), nn.ReLU()).eval()
    nn.init.normal_(model[0].conv_offset.weight, std=0.3)
    axis = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model, (torch.randn(2, 3, 9, 11),), dynamic_shapes=({0: axis, 2: axis, 3: axis},)
    ).run_decompositions(decompositions())
    targets = " ".join(str(node.target) for node in program.graph.nodes)
    # coremltools lacks the others
    assert not any(name in targets for name in ("dcnzoo", "__and__", "where.Scalar", "grid_sampler_2d"))
    for shape in ((1, 3, 7, 20), (3, 3, 9, 11)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-5)


def test_coordinates_of_a_half_input_are_float32():
    """A grid in float16 is off by .08 pixels at 168 columns."""
    ramp = torch.arange(168.0).expand(1, 1, 3, 168)
    offset = torch.full((1, 2, 3, 168), 0.3).half()
    with Recorded():
        moved = dcnzoo.ops.deform_conv2d(ramp.half(), torch.ones(1, 1, 1, 1).half(), offset)
    right = moved[0, 0, 0, 100:160].float() - ramp[0, 0, 0, 100:160]
    assert (right[:28] - 0.3).abs().max() <= 0.07, "half of a float16's step below 128"
