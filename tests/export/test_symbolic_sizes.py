"""Sizes of pictures and of inputs, for each image of a batch: torch alone fails or fixes a size."""

from contextlib import nullcontext

import pytest
import torch

from dcnzoo.openmmlab.export import symbolic_sizes
from dcnzoo.openmmlab.export.symbolic_sizes import SymbolicSizes
from tests.export import test_vmap
from tests.helpers.modules import module_of, record_calls


def add_in_place(x, size):
    total = torch.zeros(2)
    total += size[0] * 0.5
    return total


CASES = {  # of an image [H, W] and the size of its picture: two scalar tensors, or numbers
    "new_tensor of sizes": lambda x, size: x[0, :2] * x.new_tensor([x.shape[0], x.shape[1]]),
    "new_tensor of tensors": lambda x, size: x[0, :2] * x.new_tensor([size[0], size[1]]),
    "tensor of tensors": lambda x, size: x[0, :2] * torch.tensor([size[0], size[1]]),
    "linspace": lambda x, size: torch.linspace(0, size[1], x.shape[1]),
    "addition in place": add_in_place,
    "clamp": lambda x, size: x.clamp(min=0, max=size[0]),
    "torch.clamp": lambda x, size: torch.clamp(x, min=0, max=size[0]),
    "clamp in place": lambda x, size: (x * 1)[0].clamp_(min=0, max=size[0]),
    "slice": lambda x, size: (x[:, : size[1]] > 0).any(1),
    "slice of rows": lambda x, size: x[: size[0]].amax(0),
    "slice beside a number": lambda x, size: x[1, : size[1]].amax(),
}


def program_of(function, mode):
    """Trace the function for each image of a batch, with all sizes dynamic."""

    def of_batch(x, sizes):
        with mode():
            return torch.vmap(lambda image, size: function(image, (size[0], size[1])))(x, sizes)

    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 1: dynamic, 2: dynamic}, {0: dynamic})
    args = torch.randn(3, 8, 10), torch.tensor([[4, 5], [6, 3], [2, 2]])
    return torch.export.export(module_of(of_batch), args, dynamic_shapes=shapes, strict=False).module()


@pytest.mark.parametrize("name", CASES)
def test_sizes_stay_symbolic(name):
    """The program of a batch, compared with torch alone for each image and sizes that are numbers."""
    images, sizes = torch.randn(2, 9, 14), [(5, 7), (3, 4)]
    expected = [CASES[name](*each) for each in zip(images, sizes, strict=True)]
    result = program_of(CASES[name], SymbolicSizes)(images, torch.tensor(sizes))
    torch.testing.assert_close(result, torch.stack(expected))


def test_each_replacement_has_a_case(monkeypatch):
    called = record_calls(monkeypatch, symbolic_sizes.REPLACED)
    with SymbolicSizes():
        for case in CASES.values():
            case(torch.randn(8, 10), (torch.tensor(4), torch.tensor(5)))
        test_vmap.FUNCTIONS["computed weights"](torch.randn(2, 8, 12))
        test_vmap.test_a_loop_over_the_sizes_of_levels_yields_numbers()
    assert called == {*symbolic_sizes.REPLACED}


@pytest.mark.parametrize("index", [(..., slice(torch.tensor(2))), (None, slice(torch.tensor(2)))])
def test_an_index_whose_axes_are_uncertain(index):
    """The rest of another axis was once filled."""
    with SymbolicSizes(), pytest.raises(NotImplementedError, match="beside a slice to a picture's size"):
        torch.randn(2, 3, 4)[index]


def test_arguments_by_name():
    size = torch.tensor(3)
    with SymbolicSizes():
        values = torch.tensor(data=[size, 4]), torch.zeros(1).new_tensor(data=[size, 4])
        values += (
            torch.linspace(start=size, end=4, steps=2),
            torch.clamp(input=torch.tensor([7, 3.5]), max=4),
        )
    assert [value.tolist() for value in values] == [[3, 4]] * 3 + [[4, 3.5]]


def test_linspace_of_one_step():
    """As for a level of one pixel: DETR's reference points."""
    height = torch.tensor(1)
    with SymbolicSizes():
        assert torch.linspace(0.5, height - 0.5, 1).tolist() == [0.5]


@pytest.mark.parametrize("name", CASES)
def test_torch_alone_does_not_keep_them(name):
    """A case that passes here needs no entry in ``SymbolicSizes`` any more."""
    with pytest.raises(Exception):  # noqa: B017  of several classes, by the case
        program_of(CASES[name], nullcontext)
