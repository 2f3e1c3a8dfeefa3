"""The plugin: ``dcn=…`` in backbones, necks and detectors. The packs: compat/test_mmcv_deform_conv.py."""

import copy

import mmdet.models
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

import dcnzoo.layers
import dcnzoo.models
from dcnzoo.layers import DCNv3, DCNv4, OffsetConv2d, OffsetLinear, PackedDeformConv2d
from dcnzoo.models import DCN, DCNv2
from tests.helpers import demo
from tests.helpers.modules import shapes


def offset_parameters(module):
    layers = [m for m in module.modules() if isinstance(m, OffsetConv2d)]
    return [parameter for layer in layers for parameter in layer.parameters()]


# Offsets start at zero and stay zero in initialisation


@pytest.mark.parametrize(
    ("dcn", "pool"),
    [("v1", None), ("v2", None), (None, "DeformRoIPoolPack"), (None, "ModulatedDeformRoIPoolPack")],
)
def test_detector(dcn, pool):
    """Initialisation keeps offsets zero; losses, gradients and predictions are finite."""
    cfg = Config.fromfile(demo.PLAIN).model
    cfg.backbone.dcn = cfg.neck.dcn = dcn
    if pool:
        layer = dict(type=pool, output_size=7, output_channels=48, deform_fc_channels=32)
        cfg.roi_head.bbox_roi_extractor.roi_layer = layer
    cfg.test_cfg.rcnn.score_thr = 0.0
    detector = demo.build(cfg)
    nn.init.zeros_(detector.backbone.layer2[0].conv1.weight)
    detector.init_weights()
    assert detector.backbone.layer2[0].conv1.weight.any()  # the backbone is initialised
    pools = [] if dcn else list(detector.roi_head.bbox_roi_extractor.roi_layers)
    last = [layer for pool in pools for layer in (pool.offset_fc[-1], *getattr(pool, "mask_fc", [])[2:3])]
    offsets = offset_parameters(detector) or [p for layer in last for p in layer.parameters()]
    assert len(offsets) == (2 * (3 + 2) if dcn else 2 * len(last)) > 0  # three stages, two levels
    assert not any(p.any() for p in offsets)
    for layer in last:
        nn.init.normal_(layer.weight, std=0.1)

    data = demo_mm_inputs(2, [[3, 96, 64], [3, 64, 80]], num_classes=3, with_mask=True)
    data = detector.data_preprocessor(data, training=True)
    loss, _ = detector.parse_losses(detector(**data, mode="loss"))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in offsets)
    assert any(p.grad.any() for p in offsets)
    for pool in pools:
        if pool.offset_fc[0].weight.grad.any():
            assert all(p.grad.isfinite().all() and p.grad.any() for p in pool.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = detector.parse_losses(detector(**data, mode="loss"))
    half.backward()
    assert half.isfinite()
    detector.eval()
    with torch.no_grad():
        results = detector(**data, mode="predict")
    for result, size in zip(results, ((96, 64), (64, 80)), strict=True):
        instances = result.pred_instances
        assert len(instances) > 0 and instances.scores.isfinite().all()
        assert instances.masks.shape[1:] == size


@pytest.mark.parametrize(
    ("layer", "slow"),
    [
        (DCN(4, 6, 3), ("conv_offset",)),
        (DCNv2(4, 6, 3), ("conv_offset",)),
        (PackedDeformConv2d(4, 6, 3, modulated=True), ("conv_offset",)),
        (dcnzoo.layers.DCNv3(12, group=3), ("offset", "mask")),
        (dcnzoo.layers.DCNv4(12, group=3, dw_kernel_size=3), ("offset_mask",)),
        (dcnzoo.models.DCNv4Conv(32, 32, 3, padding=1), ("dcn.offset_mask",)),
        (dcnzoo.models.DCNv3Conv(32, 32, 3, padding=1), ("dcn.offset", "dcn.mask")),
        (dcnzoo.layers.MultiScaleDeformableAttention(12, 3), ("sampling_offsets",)),
        (dcnzoo.models.MultiScaleDeformableAttention(12, 3), ("sampling_offsets",)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_dcn_offset_lr_mult(layer, slow):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Linear(3, 3))

    def build(**paramwise):
        constructor = DefaultOptimWrapperConstructor(
            dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.5, weight_decay=0.25)),
            paramwise_cfg=paramwise,
        )
        groups = {id(group["params"][0]): group for group in constructor(model).param_groups}
        return {name: groups[id(parameter)] for name, parameter in model.named_parameters()}

    groups = build(dcn_offset_lr_mult=0.1)
    expected = {f"1.{name}.{p}" for name in slow for p in ("weight", "bias")}
    assert {name for name, group in groups.items() if group["lr"] == 0.05} == expected
    assert {group["lr"] for name, group in groups.items() if name not in expected} == {0.5}
    assert {group["lr"] for group in build(bias_decay_mult=0.0).values()} == {0.5}
    if isinstance(layer, (DCN, DCNv2)):  # mmengine's own rule, which overrides custom keys
        return
    groups = build(dcn_offset_lr_mult=0.1, custom_keys={f"1.{slow[0]}.bias": dict(lr_mult=2.0)})
    assert groups[f"1.{slow[0]}.bias"]["lr"] == 1.0 and groups[f"1.{slow[0]}.weight"]["lr"] == 0.05
    assert all(group["weight_decay"] == 0.25 for group in groups.values())


# Backbones

FAMILIES = {
    "ResNet": dict(depth=50, base_channels=8),
    "ResNet-14": dict(type="ResNet", depth=14, base_channels=8),
    "ResNet-18": dict(type="ResNet", depth=18, base_channels=8),
    "ResNetV1d": dict(depth=50, base_channels=8),
    "ResNeXt": dict(depth=50, base_channels=16, groups=4, base_width=4),
    "Res2Net": dict(depth=50, base_channels=16, scales=4, base_width=26),
    "ResNeSt": dict(depth=50, base_channels=16, radix=2),
    "RegNet": dict(arch="regnetx_400mf"),
}
BLOCKS = {"ResNet-14": 3, "ResNet-18": 6, "RegNet": 21}


def backbone(family, **arguments):
    return MODELS.build({"type": family, **FAMILIES[family], **arguments})


def deformable(module):
    packs = {n: m for n, m in module.named_modules() if isinstance(m, (DCN, DCNv2))}
    return packs, {name.split(".")[0] for name in packs}


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    """``dcn=True`` is DCNv2 in C3 to C5; without ``dcn`` it is MMDetection's backbone."""
    model = backbone(family, dcn=True)
    model.eval()
    packs, stages = deformable(model)
    assert stages == {"layer2", "layer3", "layer4"}
    assert {(type(m), m.deform_groups) for m in packs.values()} == {(DCNv2, 1)}
    convolutions = 3 if family == "Res2Net" else 1  # per block
    assert len(packs) == BLOCKS.get(family, 13) * convolutions
    outputs = model(torch.randn(1, 3, 64, 32))
    assert [tuple(o.shape[2:]) for o in outputs] == [(16, 8), (8, 4), (4, 2), (2, 1)]
    sum(o.sum() for o in outputs).backward()
    assert all(m.conv_offset.weight.grad is not None for m in packs.values())
    if family == "ResNet-18":  # MMDetection initialises the last norm of a block with zero
        model.init_weights()
        assert not any(block.norm2.weight.any() for block in (*model.layer1, *model.layer4))
        assert type(model.layer2[0].conv1) is nn.Conv2d
    cfg = dict(FAMILIES[family])
    plain = getattr(mmdet.models.backbones, cfg.pop("type", family))(**cfg)
    for setting in (None, False):
        assert repr(backbone(family, dcn=setting)) == repr(plain)


PAFPN = dict(type="PAFPN", in_channels=[4, 6, 8], out_channels=5, num_outs=4)


# Numbers of blocks: a Bottleneck; 2 + 1; 2 + 1 + 1 in each of two modules; 1 in each of four branches
HRNET = dict(
    stage1=dict(num_modules=1, num_branches=1, block="BOTTLENECK", num_blocks=(1,), num_channels=(8,)),
    stage2=dict(num_modules=1, num_branches=2, block="BASIC", num_blocks=(2, 1), num_channels=(4, 6)),
    stage3=dict(num_modules=2, num_branches=3, block="BASIC", num_blocks=(2, 1, 1), num_channels=(4, 6, 8)),
    stage4=dict(
        num_modules=1, num_branches=4, block="BASIC", num_blocks=(1, 1, 1, 1), num_channels=(4, 6, 8, 10)
    ),
)


def test_stages():
    options = dict(dcn=dict(type="DCN", deform_groups=2, fallback_on_stride=False))
    given = copy.deepcopy(options)
    packs, stages = deformable(backbone("ResNet", stage_with_dcn=(True, False, False, True), **options))
    assert stages == {"layer1", "layer4"} and options == given  # the config is unchanged
    assert {(type(m), m.deform_groups) for m in packs.values()} == {(DCN, 2)}
    three = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(1, 2))
    _, stages = deformable(backbone("ResNet-14", dcn=True, **three))
    assert stages == {"layer2", "layer3"}


WS = dict(depth=26, base_channels=8, conv_cfg=dict(type="ConvWS"))


@pytest.mark.parametrize(
    ("cfg", "setting", "names"),
    [
        (dict(FAMILIES["ResNet-18"], type="ResNet"), dict(dcn="v1"), "conv2"),
        (dict(type="ResNet", **WS), dict(dcn=True), "conv2"),
        (dict(PAFPN, type="FPN"), dict(dcn=True), "conv"),
        (dict(FAMILIES["ResNet-18"], type="ResNet"), dict(to_deformable="layer2.*.conv2"), "conv2"),
    ],
)
def test_other_layers_start_with_the_same_weights(cfg, setting, names):
    """Building the new layers draws no random numbers that others would get."""
    states = []
    for settings in ({}, setting):
        torch.manual_seed(1)
        states.append(MODELS.build({**cfg, **settings}).state_dict())
        states[-1]["next"] = torch.rand(3)
    plain, state = states
    new = {name.rpartition(".conv_offset")[0] for name in state if name.endswith("conv_offset.weight")}
    assert new and {name.rpartition(".")[2] for name in new} == {names}
    if "dcn" in setting:
        assert {state._metadata[name]["version"] for name in new} == {2}
    replaced = {f"{name}.weight" for name in new} if "dcn" in setting else set()
    added = {name for name in state.keys() - plain.keys() if not name.endswith("mask_activation.scale")}
    assert added == {f"{n}.conv_offset.{p}" for n in new for p in ("weight", "bias")}
    assert {name for name in plain if not torch.equal(plain[name], state[name])} == replaced


def test_frozen_stages():
    """The new layers of a frozen stage are frozen before the optimizer or DDP collects the parameters."""
    for setting in (dict(dcn=True), dict(to_deformable="layer[23].*.conv2")):
        model = backbone("ResNet-18", frozen_stages=2, **setting)
        trained = {name[:6] for name, p in model.named_parameters() if p.requires_grad and "offset" in name}
        assert "layer3" in trained and "layer2" not in trained


def test_hrnet():
    plain = mmdet.models.backbones.HRNet(HRNET)
    model = MODELS.build(dict(type="HRNet", extra=HRNET, dcn=True))
    packs, _ = deformable(model)
    stages = ("layer1", "stage2", "stage3", "stage4")
    assert [sum(name.startswith(stage) for name in packs) for stage in stages] == [0, 3, 8, 4]
    assert {type(m) for m in packs.values()} == {DCNv2}
    assert all(name.endswith("conv2") and m.bias is None for name, m in packs.items())
    assert {key for key in shapes(model) if "conv_offset" not in key} == set(shapes(plain))
    model.init_weights()
    assert not any(p.any() for p in offset_parameters(model))
    outputs = model(torch.randn(1, 3, 64, 96))
    assert [tuple(o.shape[1:]) for o in outputs] == [(4, 16, 24), (6, 8, 12), (8, 4, 6), (10, 2, 3)]
    sum(o.sum() for o in outputs).backward()
    assert all(p.grad is not None for p in offset_parameters(model))

    first = dict(dcn="v1", stage_with_dcn=(True, False, False, False))
    packs, _ = deformable(MODELS.build(dict(type="HRNet", extra=HRNET, **first)))
    assert {name: type(pack) for name, pack in packs.items()} == {"layer1.0.conv2": DCN}


# RoI pools


# Necks


@pytest.mark.parametrize("name", ["FPN", "PAFPN"])
@pytest.mark.parametrize(("dcn", "pack"), [(True, DCNv2), ("v1", DCN)])
def test_neck(name, dcn, pack):
    cfg = {**PAFPN, "type": name}
    plain, model = MODELS.build(cfg), MODELS.build({**cfg, "dcn": dcn})
    packs, stages = deformable(model)
    assert stages == ({"fpn_convs"} if name == "FPN" else {"fpn_convs", "pafpn_convs"})
    assert {type(m) for m in packs.values()} == {pack}
    assert {key for key in shapes(model) if "conv_offset" not in key} == set(shapes(plain))
    model.init_weights()
    assert not any(p.any() for p in offset_parameters(model))
    with_norm = MODELS.build({**cfg, "dcn": dcn, "norm_cfg": dict(type="BN"), "add_extra_convs": "on_output"})
    assert with_norm.fpn_convs[0].conv.bias is None
    inputs = [torch.randn(2, c, 16 // 2**i, 24 // 2**i) for i, c in enumerate((4, 6, 8))]
    for built in (plain, model, with_norm):
        assert [tuple(o.shape[2:]) for o in built(inputs)] == [(16, 24), (8, 12), (4, 6), (2, 3)]


# ``dcn='v3'`` and ``dcn='v4'``: DCNv3 and DCNv4 instead of a convolution


LAYERS = {"v3": DCNv3, "v4": DCNv4}
both = pytest.mark.parametrize("dcn", list(LAYERS))


def resnet(dcn, depth=14, **options):
    return MODELS.build(
        dict(type="ResNet", depth=depth, base_channels=16, stem_channels=16, dcn=dcn, **options)
    )


def conv(dcn, channels=32, **options):
    cfg = dict(type=f"DCN{dcn}Conv", in_channels=channels, out_channels=channels, kernel_size=3, padding=1)
    return MODELS.build({**cfg, **options})


@both
@pytest.mark.parametrize("depth", [14, 18])
def test_in_a_resnet(dcn, depth):
    model = resnet(dcn, depth, zero_init_residual=False)
    model.init_weights()
    assert isinstance(model.layer2[0].conv2.dcn, LAYERS[dcn])
    assert model.layer2[0].conv2.dcn.stride == (2 if depth == 14 else 1)
    assert model.layer4[0].conv2.dcn.group == 128 // 16
    assert isinstance(model.layer1[0].conv2, nn.Conv2d)
    predictors = [m for m in model.modules() if isinstance(m, OffsetLinear)]
    assert predictors and not any(m.weight.any() for m in predictors)
    x = torch.randn(2, 3, 64, 96)
    outputs = model(x)
    assert [y.shape for y in outputs] == [y.shape for y in resnet(None, depth)(x)]
    sum(y.sin().mean() for y in outputs).backward()
    assert all(m.weight.grad.any() for m in predictors)


@both
def test_begins_as_an_average_between_projections(dcn):
    layer, x = conv(dcn, stride=2).double(), torch.randn(2, 32, 7, 10, dtype=torch.float64)
    first = layer.dcn.input_proj if dcn == "v3" else layer.dcn.value_proj
    value = first(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(value, 3, stride=2, padding=1).permute(0, 2, 3, 1)
    expected = layer.dcn.output_proj(pooled).permute(0, 3, 1, 2)
    tolerance = {"v3": 1e-10, "v4": 1e-7}[dcn]  # 1/9 is a float32 parameter of v4's
    torch.testing.assert_close(layer(x), expected, rtol=tolerance, atol=tolerance)
    assert (conv(dcn, bias=False).dcn.output_proj.bias is None) == (dcn == "v4")
    neck = MODELS.build(dict(type="FPN", in_channels=[8, 16], out_channels=32, num_outs=2, dcn=dcn))
    assert isinstance(neck.fpn_convs[1].conv.dcn, LAYERS[dcn])
    maps = [torch.randn(1, 8, 12, 16), torch.randn(1, 16, 6, 8)]
    assert [tuple(y.shape) for y in neck(maps)] == [(1, 32, 12, 16), (1, 32, 6, 8)]
