"""Forward mode, ``torch.func`` and vmap: of RoI pooling, and what they ask of every operator."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from dcnzoo.layers import DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from dcnzoo.ops import deform_roi_pool, roi_align

from . import op_cases
from .op_cases import Sample
from .test_deform_roi_pool import example

OPERATORS = op_cases.operators()
every_op = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)


def maps_only(mode, ratio, aligned):
    def function(maps, rois, offset):
        return roi_align(maps, rois, (3, 2), 0.5, ratio, mode, aligned)

    return function


def moved(ratio):
    def function(maps, rois, offset):
        return deform_roi_pool(maps, rois, offset, (3, 2), 0.5, ratio, 0.3)

    return function


POOLS = {
    f"roi_align-{mode}-{ratio}-{aligned}": maps_only(mode, ratio, aligned)
    for mode, ratio, aligned in (("avg", 0, True), ("avg", 2, False), ("max", 0, False), ("max", 2, True))
} | {f"deform_roi_pool-{ratio}": moved(ratio) for ratio in (0, 2)}
every_pool = pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)


def central_difference(function, tensors, tangents, step=1e-6):
    ahead, behind = ([t + s * step * d for t, d in zip(tensors, tangents, strict=True)] for s in (1, -1))
    return (function(*ahead) - function(*behind)) / (2 * step)


def case(rois=4, channels=3):
    maps, rois, offset = example(rois=rois, channels=channels)
    tangents = torch.cos(maps), torch.sin(3 * offset)
    return maps, rois, offset, tangents


# Every operator


@every_op
def test_forward_mode_checks_arguments(op):
    for sample, message in op.invalid():
        tensors = list(sample.tensors)
        if not tensors[0].is_floating_point() or tensors[0].numel() > 1e6:
            continue
        with forward_ad.dual_level():
            tensors[0] = forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0]))
            with pytest.raises(RuntimeError) as error:
                op.call(Sample("", tuple(tensors), sample.kwargs))
        assert message in str(error.value), sample.name


@every_op
def test_only_wanted_gradients(op):
    sample = op.forms()[0]
    everything = sample.leaves()
    expected = torch.autograd.grad(op.call(everything).square().sum(), everything.given)
    for wanted, gradient in enumerate(expected):
        tensors = [t.requires_grad_(i == wanted) for i, t in enumerate(sample.map(torch.clone).given)]
        output = op.call(sample.with_given(tensors))
        (alone,) = torch.autograd.grad(output.square().sum(), tensors[wanted], create_graph=True)
        torch.testing.assert_close(alone, gradient, rtol=1e-12, atol=1e-12)
        assert torch.autograd.grad(alone.sum(), tensors[wanted])[0].isfinite().all()


@every_op
def test_vmap_of_every_tensor(op):
    """Along axis 1, output and gradients of each part, as in a loop."""
    sample = op.forms()[0]
    parts = [[t * (1 + 0.1 * i) for t in sample.given] for i in range(3)]
    stacked = [torch.stack(tensors, 1) for tensors in zip(*parts, strict=True)]
    function = lambda *tensors: op.call(sample.with_given(tensors))  # noqa: E731
    expected = torch.stack([function(*tensors) for tensors in parts])
    torch.testing.assert_close(vmap(function, 1)(*stacked), expected)
    of_all = grad(lambda *tensors: function(*tensors).square().sum(), tuple(range(len(stacked))))
    expected = tuple(map(torch.stack, zip(*(of_all(*tensors) for tensors in parts), strict=True)))
    torch.testing.assert_close(vmap(of_all, 1)(*stacked), expected)


@every_op
def test_without_tangents_a_dual_level_changes_nothing(op):
    """The same kernels, forward and backward."""
    sample = op.forms()[0]
    results = []
    for level in (False, True):
        leaves = sample.leaves()
        if level:
            with forward_ad.dual_level():
                output = op.call(leaves)
                gradients = torch.autograd.grad(output.square().sum(), leaves.given)
        else:
            output = op.call(leaves)
            gradients = torch.autograd.grad(output.square().sum(), leaves.given)
        results.append((type(output.grad_fn).__name__, output, *gradients))
    names, *tensors = zip(*results, strict=True)
    assert names[0] == names[1] and "dcnzoo" in names[0]
    assert all(torch.equal(a, b) for a, b in tensors)


@every_op
def test_forward_over_reverse(op):
    """The derivative of all gradients, also along the gradient of the output, with and without torch.func."""
    sample = op.forms()[0]
    tensors = sample.given

    def gradients(function):
        def of(weights, *tensors):
            value = lambda *t: (function(sample.with_given(t)) * weights).sum()  # noqa: E731
            return grad(value, argnums=tuple(range(len(tensors))))(*tensors)

        return of

    weights = torch.linspace(-1, 1, op.reference(sample).numel(), dtype=torch.float64)
    weights = weights.view(op.reference(sample).shape)
    for moving in ("weights", "tensors"):
        primals, tangents = (weights, *tensors), [torch.zeros_like(weights), *map(torch.zeros_like, tensors)]
        for i in range(1, len(tangents)) if moving == "tensors" else [0]:
            tangents[i] = torch.cos(primals[i])
        mine, true = (jvp(gradients(f), primals, tuple(tangents))[1] for f in (op.call, op.reference))
        torch.testing.assert_close(mine, true)
        # the same with plain backward inside of a dual level
        with forward_ad.dual_level():
            leaves = [t.detach().clone().requires_grad_() for t in tensors]
            duals = [forward_ad.make_dual(t, d) for t, d in zip(leaves, tangents[1:], strict=True)]
            outside = forward_ad.make_dual(weights, tangents[0])
            inside = leaves if moving == "weights" else duals
            output = op.call(sample.with_given(inside))
            plain = torch.autograd.grad(output, leaves, outside)
            plain = tuple(forward_ad.unpack_dual(g).tangent for g in plain)
        torch.testing.assert_close(plain, true)


# RoI pooling


@every_pool
def test_forward_mode_is_the_finite_difference(pool):
    maps, rois, offset, tangents = case()
    function = lambda m, o: pool(m, rois, o)  # noqa: E731
    expected = central_difference(function, (maps, offset), tangents)
    assert expected.abs().max() > 0.1
    output, tangent = jvp(function, (maps, offset), tangents)
    torch.testing.assert_close(output, function(maps, offset))
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)
    with forward_ad.dual_level():
        dual = function(*map(forward_ad.make_dual, (maps, offset), tangents))
        dual = forward_ad.unpack_dual(dual)
    torch.testing.assert_close(dual.primal, output)
    torch.testing.assert_close(dual.tangent, tangent)


@every_pool
def test_jacobians_agree(pool):
    maps, rois, offset, _ = case(rois=2, channels=2)
    function = lambda m, o: pool(m, rois, o)  # noqa: E731
    forward, reverse = (j(function, argnums=(0, 1))(maps, offset) for j in (jacfwd, jacrev))
    assert forward[0].any()
    torch.testing.assert_close(forward, reverse)


@every_pool
def test_second_derivatives(pool):
    """In every order of the two modes, against the finite difference of the gradient."""
    maps, rois, offset, tangents = case()
    value = lambda m, o: pool(m, rois, o).square().sum()  # noqa: E731
    slope = lambda m, o: grad(value, argnums=(0, 1))(m, o)  # noqa: E731
    expected = tuple(
        central_difference(lambda m, o, i=i: slope(m, o)[i], (maps, offset), tangents) for i in range(2)
    )
    forward_over_reverse = jvp(slope, (maps, offset), tangents)[1]
    along = lambda m, o: jvp(value, (m, o), tangents)[1]  # noqa: E731
    reverse_over_forward = grad(along, argnums=(0, 1))(maps, offset)
    reverse_over_reverse = grad(
        lambda m, o: sum((s * t).sum() for s, t in zip(slope(m, o), tangents, strict=True)), argnums=(0, 1)
    )(maps, offset)
    for actual in (forward_over_reverse, reverse_over_forward, reverse_over_reverse):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    twice = jvp(along, (maps, offset), tangents)[1]
    assert torch.allclose(twice, sum((e * t).sum() for e, t in zip(expected, tangents, strict=True)))


VMAPPED = [
    pytest.param(pool, dims, id=f"{name}-{dims}")
    for name, pool in POOLS.items()
    for dims in itertools.product((0, None), repeat=3)
    if dims[:2] != (None, None) or (dims[2] == 0 and name.startswith("deform"))  # something that is vmapped
]


@pytest.mark.parametrize(("pool", "dims"), VMAPPED)
def test_vmap(pool, dims, recwarn):
    """Output, tangents, and gradients kept apart or summed, as in a loop; no fallback, which would warn."""
    count = 3
    maps, rois, offset, _ = case()
    many = [torch.stack([t * (1 + 0.1 * i) for i in range(count)]) for t in (maps, rois, offset)]
    many[1][..., 0] = rois[:, 0].expand(count, -1)
    arguments = [m if dim == 0 else t for m, t, dim in zip(many, (maps, rois, offset), dims, strict=True)]

    def parts(tensors):
        return ([t[i] if d == 0 else t for t, d in zip(tensors, dims, strict=True)] for i in range(count))

    def per_sample(maps, rois, offset):
        value = lambda m, o: pool(m, rois, o).square().sum()  # noqa: E731
        return grad(value, argnums=(0, 1))(maps, offset)

    for function in (pool, per_sample):
        results = [function(*tensors) for tensors in parts(arguments)]
        expected = torch.utils._pytree.tree_map(lambda *each: torch.stack(each), *results)
        torch.testing.assert_close(vmap(function, dims)(*arguments), expected)
    leaves = [t.clone().requires_grad_(i != 1) for i, t in enumerate(arguments)]
    totals = (
        vmap(pool, dims)(*leaves).square().sum(),
        sum(pool(*tensors).square().sum() for tensors in parts(leaves)),
    )
    summed = [torch.autograd.grad(total, (leaves[0], leaves[2]), allow_unused=True) for total in totals]
    torch.testing.assert_close(*summed)
    assert not recwarn.list


@pytest.mark.parametrize(("pool", "dims"), VMAPPED)
def test_vmap_of_forward_mode(pool, dims):
    count = 2
    tensors = case()[:3]
    many = [torch.stack([t * (1 + 0.1 * i) for i in range(count)]) for t in tensors]
    many[1][..., 0] = tensors[1][:, 0].expand(count, -1)
    arguments = [m if dim == 0 else t for m, t, dim in zip(many, tensors, dims, strict=True)]

    def along(maps, rois, offset):
        tangents = torch.cos(maps), torch.sin(3 * offset)
        return jvp(lambda m, o: pool(m, rois, o), (maps, offset), tangents)[1]

    if pool is POOLS["deform_roi_pool-0"] and dims[1] == 0:
        # the reference needs the number of samples of each RoI, which vmap does not tell
        with pytest.raises(RuntimeError, match="vmap"):
            vmap(along, dims)(*arguments)
        return
    expected = [
        along(*(t[i] if d == 0 else t for t, d in zip(arguments, dims, strict=True))) for i in range(count)
    ]
    torch.testing.assert_close(vmap(along, dims)(*arguments), torch.stack(expected))


def test_vmap_over_every_axis_and_nested():
    maps, rois, offset, _ = case()
    many = [torch.stack([t, t * 1.25, t * 1.5]) for t in (maps, rois, offset)]
    many[1][..., 0] = rois[:, 0]
    expected = torch.stack([moved(2)(*(t[i] for t in many)) for i in range(3)])
    last = [t.movedim(0, axis) for t, axis in zip(many, (3, 1, 2), strict=True)]
    torch.testing.assert_close(vmap(moved(2), (3, 1, 2), out_dims=1)(*last), expected.movedim(0, 1))
    twice = [torch.stack([t, t]) for t in many]
    torch.testing.assert_close(vmap(vmap(moved(2)))(*twice), torch.stack([expected] * 2))


def test_vmap_refuses_image_numbers_beyond_a_part():
    """A wrong number must not become right in the batch that vmap makes of the parts."""
    maps, rois, offset, _ = case()
    rois = torch.stack([rois, rois])
    for wrong in (-1, 2, float("nan")):
        rois[1, 0, 0] = wrong
        for pool in (moved(2), maps_only("avg", 2, True)):
            with pytest.raises(RuntimeError, match="rois: expected image numbers"):
                vmap(pool)(torch.stack([maps, maps]), rois, torch.stack([offset, offset]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_vmap_of_many_images_with_rois_of_half_precision(dtype):
    """Half precision cannot count the images of 300 parts of 2."""
    maps = torch.arange(600.0).view(300, 2, 1, 1, 1).expand(-1, -1, 1, 4, 4)
    rois = torch.tensor([[1, 0, 0, 4, 4]], dtype=dtype).expand(300, 1, 5)
    output = vmap(lambda m, r: roi_align(m, r, 1))(maps, rois)
    assert output.flatten().tolist() == list(range(1, 600, 2))


@pytest.mark.parametrize("pack", [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])
def test_forward_mode_of_packs(pack):
    torch.manual_seed(0)
    maps, rois, _, (tangent, _) = case()
    layer = pack((3, 2), 3, 8, 0.5, 2, 0.3).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    function = lambda m: layer(m, rois)  # noqa: E731
    expected = central_difference(function, (maps,), (tangent,))
    torch.testing.assert_close(jvp(function, (maps,), (tangent,))[1], expected, rtol=1e-6, atol=1e-7)
