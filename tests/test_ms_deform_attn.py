"""ms_deform_attn and flash_deform_attn: agreement with F.grid_sample, and edge cases."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from dcnzoo.ops import flash_deform_attn, ms_deform_attn

from .op_cases import ms_deform_attn as cases

F64 = {"dtype": torch.float64}
ALL = [pytest.param(s, id=s.name) for s in cases.samples() if all(t.numel() for t in s.tensors)]


def grid_sample_formula(value, spatial_shapes, level_start_index, locations, weights):
    """Deformable DETR's plain PyTorch function."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = torch.zeros(batch * heads, channels, queries, **F64)
    for level, ((height, width), start) in enumerate(
        zip(spatial_shapes.tolist(), level_start_index.tolist(), strict=True)
    ):
        maps = value[:, start : start + height * width].view(batch, height, width, heads, channels)
        maps = maps.permute(0, 3, 4, 1, 2).flatten(0, 1)
        at = 2 * locations[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, points, 2) - 1
        samples = F.grid_sample(maps, at, "bilinear", "zeros", align_corners=False)
        factors = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        out = out + (samples * factors).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2)


@pytest.mark.parametrize("sample", ALL)
def test_agrees_with_grid_sample(sample):
    mine, other = sample.leaves(), sample.leaves()
    output, expected = cases.call(mine), grid_sample_formula(*cases.arguments(other))
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    grad = torch.linspace(-1, 1, output.numel(), **F64).view(output.shape)
    got = torch.autograd.grad(output, mine.tensors, grad)
    torch.testing.assert_close(got, torch.autograd.grad(expected, other.tensors, grad), rtol=1e-10, atol=1e-9)


def test_hand_worked():
    """Two levels of one row. Locations are normalised to the level; pixel i has its centre at i + 0.5."""
    value = torch.tensor([1.0, 2, 3, 4, 50, 70], **F64).view(1, 6, 1, 1)
    sizes, starts = torch.tensor([[1, 4], [1, 2]]), torch.tensor([0, 4])
    locations = torch.tensor([[0.5, 0.5], [0.5, 0.5]], **F64).view(1, 1, 1, 2, 1, 2)
    weights = torch.tensor([1.0, 0.1], **F64).view(1, 1, 1, 2, 1)
    # halfway between 2 and 3, and between 50 and 70
    assert ms_deform_attn(value, sizes, starts, locations, weights).item() == pytest.approx(2.5 + 6)
    locations[0, 0, 0, 0, 0, 0] = 0.125 + 0.25  # pixel 1
    locations[0, 0, 0, 1, 0, 0] = 0  # half a pixel outside
    assert ms_deform_attn(value, sizes, starts, locations, weights).item() == pytest.approx(2 + 2.5)


def test_levels_may_lie_anywhere_in_the_value():
    sample = cases.make("places", sizes=((4, 5), (3, 2)))
    value, locations, weights = sample.tensors
    swapped = torch.cat([value[:, 20:], value[:, :3], value[:, :20]], dim=1)
    output = ms_deform_attn(
        swapped, sample.kwargs["spatial_shapes"], torch.tensor([9, 0]), locations, weights
    )
    torch.testing.assert_close(output, cases.call(sample))


def test_flash_deform_attn():
    sample = cases.make("flash", points=3)
    value, locations, _ = sample.tensors
    logits = torch.randn(*locations.shape[:3], 2 * 3, **F64)
    levels = (sample.kwargs["spatial_shapes"], sample.kwargs["level_start_index"])
    together = torch.cat([locations.flatten(3), logits], dim=3).requires_grad_()
    output = flash_deform_attn(value, *levels, together)
    weights = logits.softmax(-1).unflatten(3, (2, 3))
    torch.testing.assert_close(output, grid_sample_formula(value, *levels, locations, weights))
    assert torch.autograd.gradcheck(lambda t: flash_deform_attn(value, *levels, t), together, fast_mode=True)
    with pytest.raises(RuntimeError, match=r"^flash_deform_attn: sampling_loc_attn: .*got \(2, 7, 3, 17\)"):
        flash_deform_attn(value, *levels, together[..., 1:])


def test_vmap_over_levels_is_refused():
    sample = cases.make("vmap")
    levels = [torch.stack([t] * 2) for t in sample.kwargs.values()]
    value, *rest = (torch.stack([t] * 2) for t in sample.tensors)
    with pytest.raises(RuntimeError, match=r"^ms_deform_attn: spatial_shapes, .*: expected .* vmap axis"):
        torch.vmap(ms_deform_attn)(value, *levels, *rest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("wanted", [(0,), (1, 2), (0, 1, 2)], ids=str)
def test_gradients_of_few_samples_on_a_large_map(dtype, wanted):
    """The CPU kernel does not copy such a map."""
    sample = cases.make("large", queries=9, heads=2, channels=16, sizes=((99, 98), (5, 6)))
    tensors = [tensor.double() for tensor in sample.tensors]
    gradients = {}
    for function, kind in ((cases.call, dtype), (cases.reference, torch.float64)):
        given = [tensor.to(kind) for tensor in tensors]
        leaves = [given[place].requires_grad_() for place in wanted]
        output = function(dataclasses.replace(sample, tensors=tuple(given)))
        factors = torch.linspace(-1, 1, output.numel(), dtype=kind).view_as(output)
        gradients[function] = torch.autograd.grad(output, leaves, factors)
    for got, expected in zip(*gradients.values(), strict=True):
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(
            got.double(), expected, rtol=1e-4, atol=1e-3 if dtype.itemsize == 4 else 1e-9
        )
