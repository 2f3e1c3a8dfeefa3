"""Control of predicted offsets: their limit, statistics and learning rate."""

import copy
import functools
import math
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import dcnzoo
from dcnzoo.layers import (
    DCNv3,
    DCNv4,
    ModulatedDeformRoIPoolPack,
    MultiScaleDeformableAttention,
    OffsetConv1d,
    OffsetConv2d,
    OffsetConv3d,
    PackedDeformConv2d,
    PackedDeformConv3d,
    PackedDeformConvTranspose2d,
    limit_offset,
    modulation_statistics,
    offset_parameter_groups,
    offset_statistics,
    track_offsets,
)
from dcnzoo.layers.offsets import OffsetPredictor

# Initial values


@pytest.mark.parametrize("make", [
    lambda: DCNv3(8, group=2, center_feature_scale=True),
    lambda: DCNv4(8, group=2, center_feature_scale=True, mask_start=1 / 9),
    lambda: MultiScaleDeformableAttention(16, 4, 2),
])  # fmt: skip
def test_resets_in_any_order(make):
    """FSDP and torch's recipe for the meta device reset each module that has parameters."""
    names = ("offset", "center", "mask", "sampling")
    expected = {name: p.clone() for name, p in make().named_parameters() if name.startswith(names)}
    for order in (list, reversed):
        with torch.device("meta"):
            layer = make()
        layer.to_empty(device="cpu")
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 7)
        for module in order([*layer.modules()]):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        torch.testing.assert_close(
            {n: p.data for n, p in layer.named_parameters() if n in expected}, expected
        )


# The limit


def test_limit_offset():
    limit = 2.5
    offset = torch.tensor([0.0, 1e-3, -1e-3, 1.0, -1.0, 10.0, -1e30, math.inf, -math.inf]).double()
    limited = limit_offset(offset, limit)
    expected = [limit * math.tanh(value / limit) for value in offset.tolist()]
    torch.testing.assert_close(limited, torch.tensor(expected, dtype=torch.float64))
    zero = torch.zeros(1, requires_grad=True)
    limit_offset(zero, limit).backward()
    assert zero.grad == 1
    # a prediction beyond float16 is infinite; the limit makes it finite
    pack = PackedDeformConv2d(1, 1, 3, padding=1, offset_limit=2).half()
    nn.init.constant_(pack.conv_offset.bias, 6e4)
    nn.init.constant_(pack.conv_offset.weight, 6e4)
    offset, _ = pack.predict(torch.ones(1, 1, 4, 4, dtype=torch.float16))
    assert (offset == 2).all()
    for bad in (0, -1.0, math.inf, math.nan, "3", True):
        with pytest.raises(ValueError, match=r"PackedDeformConv2d: offset_limit: "):
            PackedDeformConv2d(4, 6, 3, offset_limit=bad)


def test_statistics_of_simple_packs():
    plain = nn.Sequential(PackedDeformConv3d(1, 1, 3, padding=2), PackedDeformConv3d(1, 1, 1))
    track_offsets(plain)
    plain(torch.randn(1, 1, 4, 3, 5))  # regular points in the padding do not count as outside
    assert [tuple(s) for s in offset_statistics(plain).values()] == [(0, 0, 0)] * 2
    pack = PackedDeformConvTranspose2d(1, 1, 2, stride=2)
    track_offsets(pack)
    pack(torch.randn(0, 1, 4, 4))
    assert offset_statistics(pack) == {}
    # in the output: rows 0, 2, 4 and 6 of 8, for one of four taps
    for shift, outside in ((1.5, 0), (2.0, 1 / 16), (math.nan, 1 / 4)):
        pack.conv_offset.bias.data[0] = shift
        pack(torch.randn(1, 1, 4, 4))
        assert offset_statistics(pack)[""].outside == outside
    assert math.isnan(offset_statistics(pack)[""].mean)


# Statistics


def test_statistics_by_hand():
    pack = PackedDeformConv2d(3, 4, (3, 2), (2, 1), (1, 0), (1, 2), offset_groups=3)
    model = nn.ModuleDict({"layer": pack, "plain": nn.Conv2d(3, 3, 1)})
    nn.init.normal_(pack.conv_offset.weight)
    nn.init.normal_(pack.conv_offset.bias, std=2)
    input = torch.randn(2, 3, 7, 6)
    pack(input)
    assert offset_statistics(model) == {}  # off by default
    track_offsets(model)
    pack(input)
    ((name, statistics),) = offset_statistics(model).items()
    assert name == "layer"

    offset = pack.conv_offset(input).detach()
    assert offset.shape == (2, 36, 4, 4)
    outside = 0
    for image, point, row, column in torch.ones(2, 18, 4, 4).nonzero().tolist():
        tap = point % 6
        grid_y, grid_x = 2 * row - 1 + tap // 2, column + 2 * (tap % 2)
        y, x = (
            offset[image, 2 * point : 2 * point + 2, row, column] + torch.tensor([grid_y, grid_x])
        ).tolist()
        in_map = [-1 < a < 7 and -1 < b < 6 for a, b in ((grid_y, grid_x), (y, x))]
        outside += in_map == [True, False]
    assert 0 < outside < offset.numel() / 2
    assert statistics.outside == pytest.approx(outside / (offset.numel() / 2))
    assert statistics.mean == pytest.approx(offset.abs().mean().item())
    assert statistics.max == pytest.approx(offset.abs().max().item())
    track_offsets(model, False)
    pack(input)
    assert offset_statistics(model) == {}


def test_modulation_statistics():
    pack = PackedDeformConv2d(1, 1, (3, 2), modulated=True, mask_activation=None)
    pack.conv_offset.bias.data[-6:] = torch.tensor([0.04, -0.04, 0.06, 0.94, -0.96, 1.04])
    pack(torch.zeros(1, 1, 4, 4))
    assert modulation_statistics(pack) == {}  # off by default
    track_offsets(pack)
    pack(torch.zeros(1, 1, 4, 4))
    assert tuple(modulation_statistics(pack)[""]) == pytest.approx((3.08 / 6, 2 / 6, 2 / 6))


# Learning rate and start


@pytest.mark.parametrize("bad", [None, "0.1", -1, math.nan])
def test_bad_learning_rates(bad):
    layer = PackedDeformConv2d(1, 1, 3)
    for name in ("lr", "offset_lr_mult"):
        with pytest.raises(ValueError, match=f"^offset_parameter_groups: {name}: .*got {bad!r}"):
            offset_parameter_groups(layer, **{"lr": 0.1, name: bad})
    with pytest.raises(TypeError, match=r"^offset_parameter_groups: model: .*got NoneType"):
        offset_parameter_groups(None, 0.1)


def test_offset_parameter_groups():
    packs = [PackedDeformConv2d(3, 3, 3, modulated=True), PackedDeformConv2d(3, 3, 3, bias=False)]
    model = nn.Sequential(nn.Conv2d(3, 3, 1), *packs, packs[0], nn.BatchNorm2d(3))
    others, offsets = offset_parameter_groups(model, lr=0.5)
    assert (others["lr"], offsets["lr"]) == (0.5, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    predictors = {names[id(parameter)].rpartition(".")[0] for parameter in offsets["params"]}
    assert predictors == {"1.conv_offset", "2.conv_offset"}
    assert (len(others["params"]), len(offsets["params"])) == (len(names) - 4, 4)  # each once
    optimizer = torch.optim.AdamW([others, offsets], weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1]
    (group,) = offset_parameter_groups(nn.Linear(2, 2), lr=0.1)  # optimizers also work without offsets
    assert len(group["params"]) == 2
    for layer, names in ((DCNv3(12, group=3), ("offset", "mask")), (DCNv4(12, group=3), ("offset_mask",))):
        _, offsets = offset_parameter_groups(layer, lr=0.1)
        expected = [id(p) for name in names for p in getattr(layer, name).parameters()]
        assert sorted(map(id, offsets["params"])) == sorted(expected)


def test_groups_from_before_a_conversion():
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    groups = [{"params": list(model.parameters())}]
    assert len(offset_parameter_groups(model, 0.1, groups=groups)) == 1
    dcnzoo.to_deformable(model, "0")
    with pytest.raises(ValueError, match=r"expected parameters that predict offsets, got none"):
        offset_parameter_groups(model, 0.1, groups=groups)


@pytest.mark.parametrize("convolution", [OffsetConv1d, OffsetConv2d, OffsetConv3d])
def test_offset_convs_start_at_zero(convolution):
    layer = convolution(2, 3, 3)
    assert not layer.weight.any() and not layer.bias.any()
    assert convolution(2, 3, 3, bias=False).bias is None
    plain = convolution.__name__.removeprefix("Offset")
    assert isinstance(layer, getattr(nn, plain))
    assert plain not in {base.__name__ for base in (convolution, *convolution.__bases__)}  # mmengine's check


def test_parameter_groups_are_split_with_their_options():
    """The existing groups are like timm's, which exempt biases and norms from weight decay."""
    model = nn.Sequential(PackedDeformConv2d(4, 6, 3), nn.BatchNorm2d(6))
    exempt = [p for p in model.parameters() if p.dim() == 1]
    decayed = [p for p in model.parameters() if p.dim() > 1]
    existing = [{"params": exempt, "weight_decay": 0.0}, {"params": iter(decayed), "lr": 0.5}]
    groups = offset_parameter_groups(model, lr=1.0, offset_lr_mult=0.1, groups=existing)
    rows = [(group["lr"], group.get("weight_decay"), len(group["params"])) for group in groups]
    assert rows == [(1.0, 0.0, 3), (0.1, 0.0, 1), (0.5, None, 1), (0.05, None, 1)]
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert groups[1]["params"][0] is model[0].conv_offset.bias


def transformed(model, x):
    torch.func.vmap(model)(x[:, None])


def faked(model, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(x))


@pytest.mark.parametrize("call", [transformed, faked])
@pytest.mark.parametrize("make", [lambda: PackedDeformConv2d(4, 6, 3, modulated=True), lambda: DCNv3(4)])
def test_no_statistics_of_tensors_that_end_with_a_transform(call, make):
    model, x = make(), torch.randn(2, 4, 5, 4)
    track_offsets(model)
    model(x)
    before = offset_statistics(model), modulation_statistics(model)
    call(model, x)
    assert before == (offset_statistics(model), modulation_statistics(model))
    pickle.loads(pickle.dumps(copy.deepcopy(model)))


def he_init(module, generator=None):
    """Initialise a layer like nnU-Net's InitWeights_He and most functions that are passed to ``apply``."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=0.01, generator=generator)
        module.bias = nn.init.constant_(module.bias, 0)


@pytest.mark.parametrize("make", [
    lambda: PackedDeformConv2d(4, 6, 3, modulated=True),
    lambda: PackedDeformConv3d(4, 6, 3),
    lambda: PackedDeformConvTranspose2d(4, 6, 3),
    lambda: DCNv3(8, group=2),
    lambda: DCNv4(8, group=2),
    lambda: ModulatedDeformRoIPoolPack(3, 4, 8),
])  # fmt: skip
def test_an_initialisation_of_the_model_keeps_zeros(make):
    model = nn.Sequential(make(), nn.Conv2d(3, 3, 3))
    model.apply(he_init).apply(functools.partial(he_init, generator=torch.Generator()))
    predictors = [m for m in model.modules() if isinstance(m, OffsetPredictor)]
    assert predictors and not any(p.any() for m in predictors for p in m.parameters())
    assert model[1].weight.std() > 0.1


def test_apply_keeps_the_masks_of_dcn_v4():
    """The masks of ``dcn='v4'`` start at 1 / taps."""
    from mmdet.registry import MODELS

    import dcnzoo.models  # noqa: F401

    layer = MODELS.build(dict(type="DCNv4Conv", in_channels=32, out_channels=32, kernel_size=3, padding=1))
    layer.apply(he_init)
    predictor = layer.dcn.offset_mask
    assert not predictor.weight.any() and predictor.bias.count_nonzero() == 18
    torch.testing.assert_close(predictor.bias.sum(), torch.tensor(2.0))


def test_apply_changes_learnt_offsets():
    pack = PackedDeformConv2d(4, 6, 3)
    nn.init.ones_(pack.conv_offset.weight)
    pack.apply(lambda module: [p.data.mul_(2) for p in module.parameters(recurse=False)])
    assert (pack.conv_offset.weight == 2).all()
    with torch.device("meta"):
        PackedDeformConv2d(4, 6, 3).apply(lambda module: None)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [
    nn.utils.weight_norm, nn.utils.parametrizations.weight_norm,
    nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm,
])  # fmt: skip
@pytest.mark.parametrize("make", [
    lambda: PackedDeformConv2d(4, 4, 3),
    lambda: DCNv3(4),
    lambda: DCNv4(4),
])  # fmt: skip
def test_a_norm_of_a_weight_of_zero_is_an_error(make, norm):
    """The norm divides zero by zero: the offsets are NaN, and all samples would be zero."""
    layer, x = make(), torch.randn(1, 4, 4, 4)
    layer.apply(lambda module: norm(module) if isinstance(module, OffsetPredictor) else None)
    with pytest.raises(RuntimeError, match="weight: expected finite"):
        layer(x)
    if "weight" in norm.__name__:  # the vectors of spectral_norm stay zero
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_apply_leaves_a_weight_or_bias_that_was_set(name):
    """``apply`` keeps such values, for example in ``net.apply(freeze)`` before any training."""
    pack = PackedDeformConv2d(4, 6, 3)
    nn.init.constant_(getattr(pack.conv_offset, name), 0.5)
    pack.apply(lambda module: module.requires_grad_(False))
    assert (getattr(pack.conv_offset, name) == 0.5).all()
    pack.apply(lambda module: [p.data.fill_(3) for p in module.parameters(recurse=False)])
    assert all((p == 3).all() for p in pack.conv_offset.parameters())


def test_all_of_a_separable_prediction_is_a_group():
    model = nn.Sequential(PackedDeformConv2d(4, 6, 3, prediction="separable"))
    slow = [p for g in offset_parameter_groups(model, 1.0) if g["lr"] < 1 for p in g["params"]]
    expected = [p for name, p in model.named_parameters() if ".conv_offset." in name or "features" in name]
    assert len(expected) == 6 and {id(p) for p in slow} == {id(p) for p in expected}


def test_named_parameters_are_split():
    model = nn.Sequential(PackedDeformConv2d(4, 6, 3))
    named = list(model.named_parameters())
    groups = offset_parameter_groups(model, 0.1, groups=[{"params": named}])
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["0.weight", "0.bias"],
        ["0.conv_offset.weight", "0.conv_offset.bias"],
    ]
    torch.optim.SGD(groups)
    # a group may be one tensor, and the list empty
    (single,) = offset_parameter_groups(model, 0.1, groups=[{"params": model[0].conv_offset.bias}])
    assert single["params"] == [model[0].conv_offset.bias] and single["lr"] == pytest.approx(0.01)
    assert offset_parameter_groups(model, 0.1, groups=[]) == []
