"""A layer behaves as torch's layer in its place: in-place operations, strides."""

import pytest
import torch
from torch import nn

import dcnzoo
from dcnzoo import layers
from tests.helpers.layers import CASES, maps, randomised
from tests.helpers.products import in_turn
from tests.op_cases import channels_last

LAYOUTS = {"contiguous": torch.clone, "channels last": channels_last}
TRAINED = [name for name in CASES if not name.startswith(("Mask", "Offset"))]


OPERATIONS = {"relu": torch.relu_, "add": lambda y: y.add_(2), "mul": lambda y: y.mul_(2)}


@in_turn("name, layout, operation", TRAINED, list(LAYOUTS), list(OPERATIONS))
def test_contract_in_place_operations_train(name, layout, operation):
    layer, arguments = randomised(name)
    first, *others = (LAYOUTS[layout](t) if t.dim() > 2 else t for t in arguments)
    leaves = [first.requires_grad_(), *layer.train().parameters()]
    results = []
    for copied in (torch.clone, lambda y: y):
        output = OPERATIONS[operation](copied(layer(first, *others)))
        loss = (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum()
        results.append([output, *torch.autograd.grad(loss, leaves, materialize_grads=True)])
    torch.testing.assert_close(*results)


def strides(tensor):
    """Return the strides of the axes with more than one element; the other strides have no meaning."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


# (1, 6) and one image in 3-D have no clear format: there, torch's choice depends on the kernel that it runs
CONVOLUTIONS = [
    (rank, kind, packed, batch, channels, layout)
    for rank in (1, 2, 3)
    for kind in ("", "Transpose")
    for packed in ("Packed", "")
    for batch in (1, 2)
    for channels in ((4, 6), (1, 6), (4, 1))
    for layout in LAYOUTS
    if layout == "contiguous" or (channels[0] > 1 and batch * rank != 3)
]


@pytest.mark.parametrize(("rank", "kind", "packed", "batch", "channels", "layout"), CONVOLUTIONS)
def test_contract_strides_are_those_of_torchs_layer(rank, kind, packed, batch, channels, layout):
    """The output and the gradients have these strides, in training and in inference."""
    geometry = dict(kernel_size=3, stride=2, padding=1)
    plain = getattr(nn, f"Conv{kind}{rank}d")(*channels, **geometry)
    layer = getattr(layers, f"{packed}DeformConv{kind}{rank}d")(*channels, **geometry)
    x = maps(rank)[:batch, : channels[0]]
    size = x.shape[2:] if kind else plain(x).shape[2:]
    taps = 3**rank
    fields = () if packed else (torch.randn(batch, taps * rank, *size), torch.rand(batch, taps, *size))
    outputs = []
    for module, others in ((plain, ()), (layer, fields)):
        if layout != "contiguous" and rank > 1:
            module.to(memory_format=torch.channels_last if rank == 2 else torch.channels_last_3d)
        given = LAYOUTS[layout](x).requires_grad_()
        others = [LAYOUTS[layout](t) for t in others]
        output = module(given, *others)
        output.sum().backward()
        outputs.append([output, given.grad, module.weight.grad, module(given.detach(), *others)])
        with torch.no_grad():
            outputs[-1].append(module(given, *others))
    mine, true = reversed(outputs)
    assert [strides(t) for t in mine] == [strides(t) for t in true]


@pytest.mark.parametrize(("rank", "format"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_contract_a_weight_in_channels_last_order_decides(rank, format):
    """As in torch, the weight's order decides also for a contiguous input."""
    network = nn.Sequential(getattr(nn, f"Conv{rank}d")(4, 6, 3, padding=1)).to(memory_format=format)
    x = maps(rank)
    expected = network(x)
    assert x.is_contiguous() and expected.is_contiguous(memory_format=format)
    dcnzoo.to_deformable(network, "0")
    assert network(x).stride() == expected.stride()
