"""``dcnzoo.to_deformable`` on timm's models: ``make test-others``."""

import pytest
import torch
from torch import nn

import dcnzoo
from dcnzoo.layers import PackedDeformConv2d

timm = pytest.importorskip("timm", exc_type=ImportError)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "convnext_atto"])
def test_becomes_deformable(name):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm's last one in a block is zero and stops gradients
            nn.init.uniform_(module.weight, 0.2, 0.8)
    where = "stages.[2-3].*.conv_dw" if name.startswith("convnext") else "layer[3-4].*.conv2"
    input = torch.randn(1, 3, 96, 96)
    expected = model(input)
    report = dcnzoo.to_deformable(model, where, offset_limit=8)
    assert len(report.replaced) >= 4 and not report.refused
    torch.testing.assert_close(model(input), expected, atol=1e-5, rtol=0)
    model(input).square().sum().backward()
    packs = [module for module in model.modules() if isinstance(module, PackedDeformConv2d)]
    assert all(pack.conv_offset.weight.grad.abs().sum() > 0 for pack in packs)
    other = timm.create_model(name, pretrained=False, num_classes=7).eval()
    dcnzoo.to_deformable(other, where, offset_limit=8)
    other.load_state_dict(model.state_dict())
    torch._dynamo.reset()
    compiled = torch.compile(other, backend="aot_eager")
    torch.testing.assert_close(compiled(input), expected, atol=1e-5, rtol=0)
