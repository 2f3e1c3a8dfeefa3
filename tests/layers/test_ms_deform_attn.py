"""``MultiScaleDeformableAttention``: mmcv's results, gradients and initial values."""

import functools
import importlib
import math

import mmcv.ops
import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo.models
import dcnzoo.ops
from dcnzoo import layers
from dcnzoo.compat import patches
from dcnzoo.layers import offset_parameter_groups, offset_statistics, track_offsets
from dcnzoo.openmmlab.patches.kernels import kernels
from dcnzoo.ops import flops
from tests.helpers.modules import assert_same, randomise

MODULE = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
PLAIN = MODULE.multi_scale_deformable_attn_pytorch.__wrapped__  # F.grid_sample
MmcvAttention = MODULE.MultiScaleDeformableAttention
SIZES = ((6, 9), (3, 5))
PIXELS = 69
ARGUMENTS = dict(embed_dims=12, num_heads=3, num_levels=2, num_points=4)
TOLERANCE = dict(rtol=1e-10, atol=1e-10)


def tensors(reference=2, batch=2, queries=7, batch_first=True, dtype=torch.float64):
    """The arguments of mmcv's forward."""
    generator = torch.Generator().manual_seed(1)
    normal = functools.partial(torch.randn, generator=generator, dtype=dtype)
    points = torch.rand(batch, queries, 2, reference, generator=generator, dtype=dtype)
    areas = [h * w for h, w in SIZES]
    given = dict(
        query=normal(batch, queries, 12),
        value=normal(batch, PIXELS, 12),
        identity=normal(batch, queries, 12),
        query_pos=normal(batch, queries, 12),
    )
    if not batch_first:
        given = {name: tensor.transpose(0, 1).contiguous() for name, tensor in given.items()}
    return dict(
        **given,
        key_padding_mask=torch.rand(batch, PIXELS, generator=generator) < 0.2,
        reference_points=points * 1.4 - 0.2,
        spatial_shapes=torch.tensor(SIZES),
        level_start_index=torch.tensor([0, areas[0]]),
    )


def alone(**options):
    return randomise(layers.MultiScaleDeformableAttention(**{**ARGUMENTS, **options}))


def inputs(**options):
    """The arguments of the layer in dcnzoo.layers."""
    given = tensors(**options)
    names = "query reference_points value spatial_shapes level_start_index key_padding_mask"
    return [given[name] for name in names.split()]


# Agreement with mmcv


def test_registered_over_mmcvs():
    for registry in (MODELS, importlib.import_module("mmdet.registry").MODELS):
        layer = registry.build(dict(type="MultiScaleDeformableAttention", **ARGUMENTS, dropout=0.0))
        assert type(layer) is dcnzoo.models.MultiScaleDeformableAttention
    assert isinstance(layer, mmcv.ops.MultiScaleDeformableAttention)  # detectors check for this class


def both(**options):
    """The registered layer and mmcv's, with the same weights."""
    theirs = randomise(MmcvAttention(**ARGUMENTS, dropout=0.0, **options)).double()
    ours = dcnzoo.models.MultiScaleDeformableAttention(**ARGUMENTS, dropout=0.0, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.fixture
def plain_mmcv(monkeypatch):
    """Run mmcv on torch's grid_sample."""
    monkeypatch.setattr(MODULE, "multi_scale_deformable_attn_pytorch", PLAIN)


@pytest.mark.usefixtures("plain_mmcv")
@pytest.mark.parametrize("reference", [2, 4])
@pytest.mark.parametrize(("batch_first", "ratio"), [(True, 1.0), (False, 0.5)])
def test_equals_mmcvs(reference, batch_first, ratio):
    results = []
    for layer in both(batch_first=batch_first, value_proj_ratio=ratio):
        given = tensors(reference, batch_first=batch_first)
        leaves = [t.requires_grad_() for t in given.values() if t.is_floating_point()]
        output = layer(**given)
        gradients = torch.autograd.grad(output.sin().sum(), [*leaves, *layer.parameters()])
        results.append((output, *gradients))
    assert len(results[0]) == 1 + 5 + 8
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.usefixtures("plain_mmcv")
def test_what_may_be_left_out():
    """value and identity default to the query without its position; a point and a mask may apply to all."""
    ours, theirs = both()
    given = tensors(queries=PIXELS, batch_first=False)
    one_mask = given | dict(key_padding_mask=given["key_padding_mask"][:1])
    torch.testing.assert_close(ours(**one_mask), theirs(**one_mask), **TOLERANCE)
    for name in ("value", "identity", "key_padding_mask", "level_start_index"):
        del given[name]
    torch.testing.assert_close(ours(**given), theirs(**given), **TOLERANCE)
    with pytest.warns(DeprecationWarning, match="residual"):
        output = ours(residual=given["query"] * 0, **given)
    torch.testing.assert_close(output, theirs(identity=given["query"] * 0, **given), **TOLERANCE)
    layer = alone().double()
    query, points, value, shapes, starts, mask = inputs()
    output = layer(query, points, value, shapes, starts, mask)
    assert torch.equal(layer(query, points, value, shapes, None, mask), output)
    everywhere = points[:, :1, :1].expand(-1, 7, 2, -1)
    same = (layer(query, p, value, shapes) for p in (points[:, :1, :1], everywhere))
    torch.testing.assert_close(*same, rtol=0, atol=0)


@pytest.mark.parametrize(("heads", "levels", "points"), [(8, 4, 4), (3, 2, 5), (1, 1, 1)])
def test_initial_values_are_the_published(heads, levels, points):
    """Also after a parent module's initialisation."""
    options = dict(embed_dims=24, num_heads=heads, num_levels=levels, num_points=points)
    angle = 2 * math.pi * torch.arange(heads) / heads
    directions = torch.stack([angle.cos(), angle.sin()], 1)
    directions /= directions.abs().amax(1, True)
    steps = torch.arange(1, points + 1)[:, None]
    expected = (directions[:, None, None] * steps).expand(heads, levels, points, 2).flatten()
    for kind in (layers, dcnzoo.models):
        parent = BaseModule(init_cfg=dict(type="Normal", layer="Linear", std=1.0))
        parent.attention = layer = kind.MultiScaleDeformableAttention(**options)
        for _ in range(2):
            assert not any(
                p.any() for p in (layer.sampling_offsets.weight, *layer.attention_weights.parameters())
            )
            torch.testing.assert_close(layer.sampling_offsets.bias, expected, rtol=0, atol=1e-5)
            for projection in (layer.value_proj, layer.output_proj):
                assert not projection.bias.any()
                assert 0.8 * math.sqrt(6 / 48) < projection.weight.abs().max() <= math.sqrt(6 / 48)
            parent.init_weights()
        assert layer.value_proj.weight.shape == (24, 24)


# The layer by itself


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    layer = randomise(dcnzoo.models.MultiScaleDeformableAttention(**ARGUMENTS, dropout=0.0), std=0.3)
    given = tensors(dtype=torch.float32, batch_first=False)
    expected = layer(**given)
    with torch.autocast("cpu", dtype):
        output = layer(**given)
    assert (output - expected).abs().max() < 0.03 * expected.abs().max()
    output.float().sin().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


def test_half_precision_keeps_coordinates():
    """bfloat16 rounds a location of 598.5 of 600 pixels to 597.7, in another pixel."""
    layer = layers.MultiScaleDeformableAttention(12, num_heads=3, num_levels=1, num_points=1)
    nn.init.zeros_(layer.sampling_offsets.bias)
    value = (torch.arange(600.0) % 2).view(1, 600, 1).expand(1, 600, 12)  # even pixels are zero
    points, shapes = torch.tensor([[[[598.5 / 600, 0.5]]]]), torch.tensor([[1, 600]])
    output = layer.bfloat16()(torch.zeros(1, 1, 12).bfloat16(), points, value.bfloat16(), shapes)
    assert output.dtype == torch.bfloat16 and output.abs().max() < 1e-2  # only pixel 598 is read


def test_offsets_have_statistics_and_a_learning_rate():
    layer = nn.ModuleDict({"attention": alone()})
    _, slow = offset_parameter_groups(layer, lr=1.0)
    assert {id(p) for p in slow["params"]} == {
        id(p) for p in layer["attention"].sampling_offsets.parameters()
    }
    track_offsets(layer)
    nn.init.zeros_(layer["attention"].sampling_offsets.weight)
    bias = torch.zeros(3, 2, 4, 2)
    bias[0, 1, 2] = torch.tensor([-3.0, 5.5])  # one of 24 points, on the level with 3×5 pixels
    layer["attention"].sampling_offsets.bias.data = bias.flatten()
    given = inputs(dtype=torch.float32)
    given[1] = torch.full_like(given[1], 0.5)
    layer["attention"](*given)
    statistics = offset_statistics(layer)["attention"]
    assert statistics.mean == pytest.approx(8.5 / 48) and statistics.max == 5.5
    assert statistics.outside == pytest.approx(1 / 24)
    # relative to a box: offsets in units of its size
    boxes = torch.full((2, 7, 2, 4), 0.5)
    layer["attention"](given[0], boxes, *given[2:])
    statistics = offset_statistics(layer)["attention"]
    # 5.5 / 4 · 0.5 · half of 3 pixels; 3 / 4 · 0.5 · half of 5 pixels
    assert statistics.max == pytest.approx(5.5 / 4 * 0.25 * 3)
    assert statistics.outside == 0


@pytest.mark.parametrize(
    "arguments", [dict(num_heads=5), dict(value_proj_ratio=0.25), dict(num_levels=0), dict(num_points=-1)]
)
@pytest.mark.parametrize("kind", [layers, dcnzoo.models], ids=lambda module: module.__name__)
def test_refuses_arguments(kind, arguments):
    name = "num_heads" if "value_proj_ratio" in arguments else next(iter(arguments))
    with pytest.raises(ValueError, match=f"^MultiScaleDeformableAttention: {name}: "):
        kind.MultiScaleDeformableAttention(**{**ARGUMENTS, "num_heads": 4, **arguments})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("query", (2, 7, 10)),
        ("value", (69, 12)),
        ("value", (3, 69, 12)),
        ("value", (2, 70, 12)),
        ("reference_points", (2, 7, 2, 3)),
        ("reference_points", (2, 6, 2, 2)),
        ("reference_points", (2, 7, 2)),
        ("spatial_shapes", (3, 2)),
        ("key_padding_mask", (2, 68)),
    ],
)
def test_refuses_input(name, shape):
    given = tensors(dtype=torch.float32)
    del given["identity"], given["query_pos"]
    given[name] = torch.ones(shape, dtype=given[name].dtype)
    for layer in (alone(), dcnzoo.models.MultiScaleDeformableAttention(**ARGUMENTS, batch_first=True)):
        with pytest.raises(RuntimeError, match=f"^MultiScaleDeformableAttention: {name}: expected"):
            layer(**given)
    with pytest.raises(RuntimeError, match="reference_points: expected a tensor, got None"):
        dcnzoo.models.MultiScaleDeformableAttention(**ARGUMENTS)(torch.zeros(7, 2, 12))
    with pytest.raises(RuntimeError, match="spatial_shapes: expected a tensor, got tuple"):
        alone()(*inputs(dtype=torch.float32)[:3], SIZES)


# mmcv's function


def test_mmcvs_function_runs_on_the_operator():
    flops.register()
    value, points = torch.randn(2, PIXELS, 3, 4), torch.rand(2, 7, 3, 2, 4, 2)
    weights = torch.rand(2, 7, 3, 2, 4)
    with FlopCounterMode(display=False) as counter:
        output = MODULE.multi_scale_deformable_attn_pytorch(value, torch.tensor(SIZES), points, weights)
    assert counter.get_total_flops() == 10 * weights.numel() * 4
    torch.testing.assert_close(output, PLAIN(value, SIZES, points, weights))
    with pytest.raises(RuntimeError, match=r"_pytorch: value: expected 69 pixels, got 70$"):
        MODULE.multi_scale_deformable_attn_pytorch(
            torch.randn(2, 70, 3, 4), torch.tensor(SIZES), points, weights
        )
    patches.add(*kernels())  # a second call has no effect
    assert MODULE.multi_scale_deformable_attn_pytorch.__wrapped__ is PLAIN


def test_mmcvs_autograd_function():
    """mmcv's layer calls it on a GPU; it calls the compiled module."""
    shapes, weights = ((2, PIXELS, 3, 4), (2, 7, 3, 2, 4, 2)), torch.rand(2, 7, 3, 2, 4)
    leaves = [t.double().requires_grad_() for t in (torch.randn(shapes[0]), torch.rand(shapes[1]), weights)]
    levels = torch.tensor(SIZES), torch.tensor([0, 54])
    attend = MODULE.MultiScaleDeformableAttnFunction.apply
    outputs = attend(leaves[0], *levels, *leaves[1:], 64), PLAIN(leaves[0], SIZES, *leaves[1:])
    assert_same(*outputs, leaves)


def test_exporters_see_mmcvs_own():
    class Attention(nn.Module):
        def forward(self, value, points, weights):
            return MODULE.multi_scale_deformable_attn_pytorch(value, SIZES, points, weights)

    given = (torch.randn(2, PIXELS, 3, 4), torch.rand(2, 7, 3, 2, 4, 2), torch.rand(2, 7, 3, 2, 4))
    program = torch.export.export(Attention(), given)
    assert not any("dcnzoo" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*given), Attention()(*given))


def test_without_values_and_compiled():
    layer = layers.MultiScaleDeformableAttention(8, 2, 2, 2)
    shapes = torch.tensor([[4, 3], [2, 2]])
    given = (torch.randn(1, 5, 8), torch.rand(1, 5, 2, 2), torch.randn(1, 16, 8), shapes)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(*map(mode.from_tensor, given)).shape == (1, 5, 8)
    torch.testing.assert_close(make_fx(layer)(*given)(*given), layer(*given))
    # both functions refuse levels with a gap
    gap = (*given[:2], torch.randn(1, 20, 8), shapes, torch.tensor([0, 16]))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), layer(*given))
    for function in (layer, compiled):
        with pytest.raises(RuntimeError, match=r"MultiScaleDeformableAttention: value: expected .*pixels"):
            function(*gap)
