"""``dcnzoo.compat.torchvision`` against torchvision's compiled operators: ``nox -s others``."""

import inspect

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dcnzoo.compat import patches
from dcnzoo.compat.torchvision import DeformConv2d, accelerate, accelerated, deform_conv2d, restore
from dcnzoo.ops import _library

from ..compat.test_torchvision import GEOMETRY, tensors

ops = pytest.importorskip("torchvision.ops", exc_type=ImportError)


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


# accelerate() and restore()


def maps_and_boxes(dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    input = torch.randn(3, 2, 9, 12, dtype=dtype, generator=generator)
    boxes = [torch.rand(count, 4, dtype=dtype, generator=generator) * 12 for count in (2, 0, 3)]
    return input, [torch.cat([b[:, :2].minimum(b[:, 2:]), b[:, :2].maximum(b[:, 2:])], 1) for b in boxes]


@pytest.fixture(autouse=True)
def own_kernels():
    """Restore torchvision's kernels after each test."""
    yield
    restore()


def gradients_of(function, leaves):
    """The output of ``function()`` and the gradients of ``leaves``."""
    output = function()
    return [output, *torch.autograd.grad(output.sin().sum(), leaves)]


def assert_near(results, expected, tolerance):
    """Compare tensors relative to their largest value: large terms may cancel to small values."""
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        assert (got - want).abs().max() <= tolerance * want.abs().max()


def with_and_without(function, leaves, tolerance=1e-5):
    """Compare a function on both kernels, and on torchvision's before and after ``accelerated()``."""
    expected = gradients_of(function, leaves)
    with accelerated():
        results = gradients_of(function, leaves)
    assert_near(results, expected, tolerance)
    assert [result.stride() for result in results] == [want.stride() for want in expected]
    assert all(map(torch.equal, gradients_of(function, leaves), expected))
    return results


def dcnzoos_kernels(function, leaves):
    """Names of dcnzoo's operators that ran in forward and backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        gradients_of(function, leaves)
    return {event.key for event in profile.key_averages() if event.key.startswith("dcnzoo::")}


def test_kernels_that_run():
    input, offset, weight, *_ = (t.float().requires_grad_() for t in tensors())
    maps, boxes = maps_and_boxes(torch.float32)
    maps.requires_grad_()
    for function, leaves, name in (
        (lambda: ops.deform_conv2d(input, offset, weight, **GEOMETRY), [input, offset], "deform_conv"),
        (lambda: ops.roi_align(maps, boxes, 2), [maps], "roi_align"),
    ):
        with accelerated():
            assert dcnzoos_kernels(function, leaves) == {f"dcnzoo::{name}", f"dcnzoo::_{name}_backward"}
            with torch.no_grad(), torch.inference_mode():
                function()
        assert not dcnzoos_kernels(function, leaves)


@pytest.mark.parametrize(
    ("groups", "offset_groups", "with_mask", "with_bias", "dtype"),
    [
        (1, 1, True, False, torch.float64),
        (2, 4, True, True, torch.float64),
        (1, 2, False, True, torch.float32),
    ],
)
def test_accelerated_deform_conv2d(groups, offset_groups, with_mask, with_bias, dtype):
    input, offset, weight, bias, mask = tensors(groups, offset_groups, dtype)
    mask, bias = mask if with_mask else None, bias if with_bias else None
    leaves = [t.requires_grad_() for t in (input, offset, weight, bias, mask) if t is not None]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with_and_without(
            lambda format=memory_format: ops.deform_conv2d(
                input.contiguous(memory_format=format), offset, weight, bias, **GEOMETRY, mask=mask
            ),
            leaves,
            tolerance,
        )


@pytest.mark.parametrize(("aligned", "samples", "as_list"), [(False, -1, True), (True, 3, False)])
def test_accelerated_roi_align(aligned, samples, as_list):
    maps, boxes = maps_and_boxes(torch.float32)
    maps.requires_grad_()
    if not as_list:
        numbers = torch.tensor([0.0, 0, 2, 2, 2])[:, None]
        boxes = torch.cat([numbers, torch.cat(boxes)], 1)
    layer = ops.RoIAlign((2, 3), 0.8, samples, aligned)
    for function in (layer, lambda *given: ops.roi_align(*given, 2)):  # also with torchvision's defaults
        with_and_without(lambda function=function: function(maps, boxes), [maps])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_accelerated_under_autocast(dtype):
    maps, boxes = maps_and_boxes(torch.float32)
    maps = maps.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        with_and_without(lambda: ops.roi_align(maps, boxes, 2), [maps], 2e-2)
    # under autocast, the convolution's operands have different types, which torchvision's kernel rejects
    leaves = [t.requires_grad_() for t in tensors(dtype=torch.float32)]

    def function(input, offset, weight, bias, mask):
        return ops.deform_conv2d(input, offset, weight, bias, **GEOMETRY, mask=mask)

    def mixed(input, offset, weight, bias, mask):
        return function(input.to(dtype), offset, weight, bias, mask.to(dtype))

    expected = gradients_of(lambda: function(*leaves), leaves)
    torch._dynamo.reset()
    for one in (mixed, torch.compile(mixed, backend="aot_eager", fullgraph=True)):
        with accelerated(), torch.autocast("cpu", dtype):
            results = gradients_of(lambda one=one: one(*leaves), leaves)
            same = function(*leaves)
        assert results[0].dtype == dtype and same.dtype == torch.float32
        for got, want in zip(results, expected, strict=True):
            assert (got - want).abs().max() < 0.02 * want.abs().max()
        torch.testing.assert_close(same, expected[0])


def test_accelerated_operators_fit_torchs_tools():
    """Schema, autograd registration, fake kernels (strides included), AOTAutograd with dynamic shapes."""
    input, offset, weight, bias, mask = tensors()
    leaves = [t.requires_grad_() for t in (input, weight, offset, mask, bias)]
    maps, boxes = maps_and_boxes()
    rois = torch.cat([torch.tensor([0.0, 0, 2, 2, 2]).double()[:, None], torch.cat(boxes)], 1)
    with accelerated():
        for use_mask in (True, False):
            arguments = (*leaves, 2, 1, 1, 2, 1, 2, 2, 2, use_mask)
            torch.library.opcheck(torch.ops.torchvision.deform_conv2d.default, arguments)
        for format in (torch.contiguous_format, torch.channels_last):
            given = maps.detach().contiguous(memory_format=format).requires_grad_()
            torch.library.opcheck(torch.ops.torchvision.roi_align.default, (given, rois, 0.8, 2, 3, 2, False))


def test_accelerated_in_compiled_traced_and_scripted_functions():
    """Compiled before or inside ``accelerated()``, each call uses the kernels active at that time."""
    input, offset, weight, bias, mask = (t.float().requires_grad_() for t in tensors(groups=1))
    leaves = [input, offset, weight, bias, mask]

    def function(input, offset, weight, bias, mask):
        return ops.deform_conv2d(input * 2, offset, weight, bias, (2, 1), (1, 2), (1, 2), mask) + 1

    expected = gradients_of(lambda: function(*leaves), leaves)
    torch._dynamo.reset()
    before = torch.compile(function, fullgraph=True)
    within = torch.compile(function, fullgraph=True, backend="aot_eager")
    traced = torch.jit.trace(function, leaves)
    layer = ops.DeformConv2d(4, 6, (3, 2), **{**GEOMETRY, "bias": True})
    layer.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    scripted = torch.jit.script(layer)
    gradients_of(lambda: before(*leaves), leaves)
    with accelerated():
        gradients_of(lambda: within(*leaves), leaves)
    for one in (before, within, traced):
        results = with_and_without(lambda one=one: one(*leaves), leaves)
        assert_near(results, expected, 1e-5)
    parameters = list(scripted.parameters())
    with_and_without(lambda: scripted(input, offset, mask), parameters)
    with_and_without(lambda: checkpoint(function, *leaves, use_reentrant=False), leaves)


def test_double_use_and_nesting():
    restore()  # no effect before accelerate()
    with pytest.raises(ZeroDivisionError), accelerated():
        with accelerated():
            accelerate()
        assert "torchvision" in patches.active()  # nested calls have no effect
        with patches.disabled("torchvision"):
            assert "torchvision" not in patches.active()
        assert "torchvision" in patches.active()
        raise ZeroDivisionError
    assert "torchvision" not in patches.active()
    accelerate()
    restore()
    assert "torchvision" not in patches.active()


def test_accelerate_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(_library, "has_ops", lambda: False)
    monkeypatch.setitem(_library.problems, "cpu", "_C_cpu.so is not here")
    with pytest.raises(ImportError, match=r"^accelerate: _C_cpu\.so is not here"):
        accelerate()
    assert "torchvision" not in patches.active()
