"""FLOPs of the operators in torch's counter."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo
from dcnzoo.ops import flops
from tests import op_cases
from tests.helpers.processes import python_with_torch

flops.register()


def count(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("op", op_cases.operators(), ids=lambda op: op.name)
def test_forward_and_backward_are_counted(op):
    sample = op.forms()[0]
    forward = count(lambda: op.call(sample))
    assert forward > 0
    assert count(lambda: op.results(sample)) >= 2 * forward


def counts() -> dict[str, list[int]]:
    """Return the FLOPs without gradients, of a forward that autograd records, and of both passes."""
    numbers = {}
    for op in op_cases.operators():
        sample = op.forms()[0]
        calls = partial(op.call, sample), partial(op.call, sample.leaves()), partial(op.results, sample)
        numbers[op.name] = [count(call) for call in calls]
    return numbers


def test_plain_pytorch_counts_as_the_compiled_kernels(tmp_path):
    code = "import sys, torch; from tests.ops.test_flops import counts; torch.save(counts(), sys.argv[1])"
    python_with_torch(code, tmp_path / "counts.pt", DCNZOO_BACKEND="plain")
    assert torch.load(tmp_path / "counts.pt") == counts()


@pytest.mark.parametrize("kind", [f"Conv{kind}{rank}d" for kind in ("", "Transpose") for rank in (1, 2, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_converted_layer_counts_the_samples_in_addition(kind, groups):
    rank = int(kind[-2])
    network = nn.Sequential(nn.Identity(), getattr(nn, kind)(4, 6, 3, stride=2, padding=1, groups=groups))
    x = torch.randn(2, 4, *[9, 8, 7][:rank])
    forward, both = count(lambda: network(x)), count(lambda: network(x).sum().backward())
    outputs = network(x).numel() // 6
    dcnzoo.to_deformable(network, "1", kind="v1")
    layer = network[1]
    prediction = count(lambda: layer.conv_offset(x))
    taps = 3**rank
    # per tap and channel of the sampled map, 2^rank corners, each a product and a sum
    sampled = (x.numel() // 4) * 6 if layer.transposed else outputs * 4
    assert count(lambda: network(x)) == forward + prediction + 2 * 2**rank * sampled * taps
    assert count(lambda: network(x).sum().backward()) > both + prediction


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4))[1:])
def test_the_backward_counts_what_is_needed(needed):
    """One product for the weight, one for all others; samples for the input, the weight, and the fields."""
    shapes = [(2, 4, 9, 8), (6, 4, 3, 2), (2, 12, 7, 7), (2, 6, 7, 7)]  # input, weight, offset, mask
    tensors = [
        torch.randn(shape, requires_grad=is_needed) for shape, is_needed in zip(shapes, needed, strict=True)
    ]
    output = dcnzoo.ops.deform_conv2d(*tensors)
    of_input, of_weight, *of_fields = needed
    product = 2 * 2 * 7 * 7 * 6 * 4 * 3 * 2  # batch, positions, outputs, inputs, taps
    samples = 2 * 4 * 2 * 7 * 7 * 4 * 3 * 2  # four corners
    expected = (of_weight + (of_input or any(of_fields))) * product
    expected += (of_input + of_weight + any(of_fields)) * samples
    assert count(lambda: output.sum().backward()) == expected


def test_only_the_registration_changes_the_counts():
    python_with_torch("""
import sys, torch, dcnzoo
layer, x = dcnzoo.layers.PackedDeformConv2d(4, 4, 3), torch.randn(1, 4, 9, 9)
dcnzoo.to_deformable(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3)), "0")
assert "torch.utils.flop_counter" not in sys.modules  # whose import takes time
from torch.utils.flop_counter import FlopCounterMode
def count():
    with FlopCounterMode(display=False) as counter:
        layer(x)
    return counter.get_total_flops()
prediction = count()
dcnzoo.to_deformable(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3)), "0")
assert count() == prediction > 0
from dcnzoo.ops import flops
flops.register()
assert count() > prediction
""")


@pytest.mark.parametrize("kind", ["Conv2d"])
def test_the_backward_of_many_groups_counts_no_less_than_torchs(kind):
    """torch's formula for the gradient of a weight counts as if there were one group."""
    network = nn.Sequential(nn.Identity(), getattr(nn, kind)(256, 256, 3, groups=128))
    x = torch.randn(1, 256, 5, 5)
    plain = count(lambda: network(x).sum().backward())
    dcnzoo.to_deformable(network, "1", prediction="separable")
    assert count(lambda: network(x).sum().backward()) > plain
