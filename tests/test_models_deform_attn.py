"""``dcn='v3'`` and ``dcn='v4'``: DCNv3 and DCNv4 instead of a convolution."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import nn

import dcnzoo.models  # noqa: F401
from dcnzoo.layers import DCNv3, DCNv4, OffsetLinear

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


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_channels": 64}, "out_channels: .*got 64"),
        ({"groups": 4}, "groups: .*got 4"),
        ({"stride": (1, 2)}, "stride: "),
        ({"padding": 0}, "pad: "),
        ({"group": 5}, "group: .*got 5"),
    ],
)
def test_refuses(dcn, options, message):
    with pytest.raises(ValueError, match=f"DCN{dcn}.*: {message}"):
        conv(dcn, **options)
