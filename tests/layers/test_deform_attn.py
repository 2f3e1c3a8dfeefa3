"""``DCNv3`` and ``DCNv4`` of ``dcnzoo.layers``: the official layers' parameters and results, errors.

The formulas follow the papers and the official layers' documented arguments. They are functions of a state
dict. ``test_ms_deform_attn.py`` tests ``MSDeformAttn``.
"""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.ops import reference
from tests.helpers.modules import randomise

C, GROUPS, KERNEL = 12, 3, 3
TOLERANCE = dict(rtol=1e-10, atol=1e-10)


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64) * 0.4


def official(shapes):
    """Return random values with the names and shapes of an official checkpoint."""
    return {name: normal(*shape) for name, shape in shapes.items()}


def linear(**names):
    """Parameter shapes of linear layers, ``name=(out, in)``."""
    shapes = {f"{name}.weight": size for name, size in names.items()}
    return {**shapes, **{f"{name}.bias": size[:1] for name, size in names.items()}}


def apply_linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def depthwise(state, name, x):  # [N, H, W, C] -> [N, C, H, W]
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[2] // 2, groups=C)


def aggregate(value, offset, mask, dilation, scale, remove_center):
    """DCNv3's sum: value [N, H, W, C], offset [N, H, W, G, P, 2] as (x, y), mask [N, H, W, G, P]."""
    geometry = [(number, number) for number in (KERNEL, 1, dilation * (KERNEL // 2), dilation)]
    fields = offset.flatten(3), mask.flatten(3)
    return reference.dcnv3(value, *fields, *geometry, GROUPS, C // GROUPS, scale, remove_center)


def blend_center(state, x, value, query):
    if "center_feature_scale_proj_weight" not in state:
        return x
    weight, bias = (state[f"center_feature_scale_proj_{kind}"] for kind in ("weight", "bias"))
    scale = (query @ weight.T + bias).sigmoid().repeat_interleave(C // GROUPS, -1)
    return x * (1 - scale) + value * scale


def dcnv3(state, x, dilation, scale, remove_center, norm, activation):
    query = depthwise(state, "dw_conv.0", x)
    if norm == "LN":
        query = query.permute(0, 2, 3, 1)
        query = F.layer_norm(query, (C,), state["dw_conv.1.1.weight"], state["dw_conv.1.1.bias"], 1e-6)
    else:
        names = ("running_mean", "running_var", "weight", "bias")
        query = F.batch_norm(query, *(state[f"dw_conv.1.0.{name}"] for name in names))
        query = query.permute(0, 2, 3, 1)
    query = activation(query)
    value = apply_linear(state, "input_proj", x)
    offset = apply_linear(state, "offset", query).unflatten(-1, (GROUPS, -1, 2))
    mask = apply_linear(state, "mask", query).unflatten(-1, (GROUPS, -1)).softmax(-1)
    x = aggregate(value, offset, mask, dilation, scale, remove_center)
    return apply_linear(state, "output_proj", blend_center(state, x, value, query))


@pytest.mark.parametrize(
    ("center_feature_scale", "remove_center", "norm", "act", "activation"),
    [
        (False, True, "LN", "GELU", F.gelu),
        (True, False, "BN", "SiLU", F.silu),
        (True, True, "LN", "ReLU", F.relu),
    ],
)
def test_dcnv3(center_feature_scale, remove_center, norm, act, activation):
    taps = GROUPS * (KERNEL**2 - remove_center)
    shapes = {
        "dw_conv.0.weight": (C, 1, 5, 5),
        "dw_conv.0.bias": (C,),
        **linear(offset=(taps * 2, C), mask=(taps, C), input_proj=(C, C), output_proj=(C, C)),
    }
    names = ("1",) if norm == "LN" else ("0",)
    shapes |= {f"dw_conv.1.{n}.{kind}": (C,) for n in names for kind in ("weight", "bias")}
    if norm == "BN":
        shapes |= {f"dw_conv.1.0.running_{kind}": (C,) for kind in ("mean", "var")}
    if center_feature_scale:
        shapes["center_feature_scale_proj_weight"] = (GROUPS, C)
        shapes["center_feature_scale_proj_bias"] = (GROUPS,)
    state = official(shapes)
    if norm == "BN":
        state["dw_conv.1.0.running_var"].abs_().add_(0.5)
        state["dw_conv.1.0.num_batches_tracked"] = torch.tensor(7)
    layer = DCNv3(
        *(C, KERNEL, 5, 1, 2, 2, GROUPS, 1.5, act, norm, center_feature_scale, remove_center)
    ).double()  # positional arguments in the official order
    compare(layer, state, normal(2, 7, 9, C), dcnv3, 2, 1.5, remove_center, norm, activation)


def compare(layer, state, x, formula, *arguments):
    """Compare outputs and gradients of a layer with the weights ``state`` with those of the formula."""
    layer.load_state_dict(state)  # strict
    assert {name: value.shape for name, value in layer.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    layer.eval()
    names = [name for name, _ in layer.named_parameters()]
    leaves = [state[name].requires_grad_() for name in names]
    x.requires_grad_()
    results = []
    for output, parameters in ((layer(x), list(layer.parameters())), (formula(state, x, *arguments), leaves)):
        results.append([output, *torch.autograd.grad(output.sin().sum(), [x, *parameters])])
    torch.testing.assert_close(*results, **TOLERANCE)


def dcnv4(state, x, dilation, scale, remove_center):
    points = KERNEL**2 - remove_center
    query = x
    if "offset_mask_dw.weight" in state:
        query = depthwise(state, "offset_mask_dw", x).permute(0, 2, 3, 1)
    fields = apply_linear(state, "offset_mask", query)[..., : GROUPS * points * 3]
    fields = fields.unflatten(-1, (GROUPS, -1))  # per group: the offsets of all taps, then their mask
    offset, mask = fields[..., : 2 * points].unflatten(-1, (-1, 2)), fields[..., 2 * points :]
    value = apply_linear(state, "value_proj", x) if "value_proj.weight" in state else x
    x = aggregate(value, offset, mask, dilation, scale, remove_center)
    x = blend_center(state, x, value, x)
    return apply_linear(state, "output_proj", x) if "output_proj.weight" in state else x


@pytest.mark.parametrize(
    ("dw_kernel_size", "center_feature_scale", "remove_center", "output_bias", "without_pointwise"),
    [
        (None, False, False, True, False),
        (5, True, False, False, False),
        (None, True, True, True, False),
        (3, False, False, True, True),
    ],
)
def test_dcnv4(dw_kernel_size, center_feature_scale, remove_center, output_bias, without_pointwise):
    rows = math.ceil(GROUPS * (KERNEL**2 - remove_center) * 3 / 8) * 8
    shapes = linear(offset_mask=(rows, C))
    if not without_pointwise:
        shapes |= linear(value_proj=(C, C), output_proj=(C, C))
    if not output_bias:
        del shapes["output_proj.bias"]
    if dw_kernel_size:
        shapes["offset_mask_dw.weight"] = (C, 1, dw_kernel_size, dw_kernel_size)
        shapes["offset_mask_dw.bias"] = (C,)
    if center_feature_scale:
        shapes["center_feature_scale_proj_weight"] = (GROUPS, C)
        shapes["center_feature_scale_proj_bias"] = (GROUPS,)
    layer = DCNv4(
        *(C, KERNEL, 1, 2, 2, GROUPS, 0.5, dw_kernel_size, center_feature_scale, remove_center),
        *(output_bias, without_pointwise),
        **dict(act_layer="GELU", norm_layer="LN"),  # accepted for networks written for DCNv3
    ).double()
    state, x = official(shapes), normal(2, 7, 9, C)
    compare(layer, state, x, dcnv4, 2, 0.5, remove_center)
    with torch.no_grad():  # the official input format
        assert torch.equal(layer(x, (7, 9)), layer(x))
        torch.testing.assert_close(layer(x.flatten(1, 2), (7, 9)), layer(x).flatten(1, 2), **TOLERANCE)
        torch.testing.assert_close(layer(x[:, :, :7].flatten(1, 2)), layer(x[:, :, :7]).flatten(1, 2))
    with pytest.raises(TypeError, match="kernel_sise"):
        DCNv4(C, kernel_sise=3)


# Initial values, strides, errors


def test_initial_outputs():
    """A new DCNv3 is an average pooling; a new DCNv4 returns its bias."""
    layer, x = DCNv3(12, group=3).double(), normal(2, 7, 9, C)
    pooled = F.avg_pool2d(layer.input_proj(x).permute(0, 3, 1, 2), 3, stride=1, padding=1)
    torch.testing.assert_close(layer(x), layer.output_proj(pooled.permute(0, 2, 3, 1)), **TOLERANCE)
    layer = DCNv4(12, group=3).double()
    nn.init.normal_(layer.output_proj.bias)
    torch.testing.assert_close(layer(x), layer.output_proj.bias.expand_as(x), **TOLERANCE)


both = pytest.mark.parametrize("layer", [DCNv3, DCNv4])


@both
@pytest.mark.parametrize("options", [{}, {"dw_kernel_size": 5, "center_feature_scale": True}])
def test_a_stride_thins_the_output_out(layer, options):
    dense = randomise(layer(12, dilation=2, pad=2, group=3, **options)).double()
    strided = layer(12, dilation=2, pad=2, group=3, stride=2, **options).double()
    strided.load_state_dict(dense.state_dict())
    x = normal(2, 7, 9, C)
    torch.testing.assert_close(strided(x), dense(x)[:, ::2, ::2], **TOLERANCE)


@both
@pytest.mark.parametrize(
    "arguments",
    [
        {"group": 5},
        {"group": 0},
        {"stride": 0},
        {"stride": 1.5},
        {"dilation": 0, "pad": 0},
        {"kernel_size": (3, 3)},
        {"kernel_size": 1, "pad": 0, "remove_center": True},
        {"kernel_size": 2},
        {"dw_kernel_size": 4},
        {"pad": 0},
    ],
)
def test_refuses_arguments(layer, arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=rf"^{layer.__name__}: {name}: .*got {re.escape(str(value))}$"):
        layer(12, **{"group": 3, **arguments})
    with pytest.raises(RuntimeError, match=r"channels last, got \(2, 12, 7, 9\)"):
        layer(12, group=3)(torch.randn(2, 12, 7, 9))
    assert layer(np.int64(12), np.int64(3), group=np.int64(3), pad=np.int64(1)).group == 3


@pytest.mark.parametrize("shape", [(), ((8, 8),)])
def test_dcnv4_refuses_a_shape_that_is_not_its_lengths(shape):
    with pytest.raises(RuntimeError, match=r"^DCNv4: shape: .* of 63 pixels, got (None|\(8, 8\))$"):
        DCNv4(12, group=3)(torch.randn(2, 63, 12), *shape)


@both
def test_defaults_are_the_official_ones(layer):
    names = ("channels", "kernel_size", "stride", "pad", "dilation", "group", "offset_scale")
    assert [getattr(layer(), name) for name in names] == [64, 3, 1, 1, 1, 4, 1.0]


@pytest.mark.parametrize("mask_start", [0.0, 1 / 9])
def test_dcnv4_before_a_relu_trains_with_mask_start(mask_start):
    """With the official start of 0, a batch norm and a ReLU stop all gradients for ever."""
    torch.manual_seed(0)
    layer, norm = DCNv4(8, group=2, mask_start=mask_start), nn.BatchNorm2d(8)
    x = torch.randn(2, 5, 6, 8)
    target = torch.rand(2, 8, 5, 6)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.SGD([*layer.parameters(), *norm.parameters()], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (norm(layer(x).permute(0, 3, 1, 2)).relu() - target).square().mean().backward()
        optimizer.step()
    moved = [not torch.equal(p, old) for p, old in zip(layer.parameters(), before, strict=True)]
    assert sum(moved) >= len(moved) - 1 if mask_start else not any(moved)
    same = DCNv4(8, group=2, mask_start=mask_start)
    same.apply(lambda m: [nn.init.normal_(p) for p in m.parameters(recurse=False)])
    assert (same.offset_mask.bias == mask_start).sum() >= 2 * 9 and not same.offset_mask.weight.any()
