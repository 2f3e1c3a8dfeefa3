"""Copies of models that pnnx converts for ncnn; ``nox -s runtimes`` runs ncnn."""

import pytest
import torch
from torch import nn

from dcnzoo.compat import mmcv
from dcnzoo.export import for_pnnx
from dcnzoo.layers import PackedDeformConv1d, PackedDeformConv2d, PackedDeformConvTranspose2d
from tests.helpers.graphs import needs_torchvision


class Focus(nn.Module):
    """As in YOLOX."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x):
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return self.conv(torch.cat(parts, 1))


class Network(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.focus, self.shared = Focus(), nn.Conv2d(4, 4, 1)
        self.both = nn.ModuleList([nn.Sequential(self.shared), nn.Sequential(self.shared)])
        self.layer = PackedDeformConv2d(4, 6, 3, stride=2, padding=1, **options)
        nn.init.normal_(self.layer.conv_offset.weight, std=0.3)

    def forward(self, x):
        x = self.focus(x)
        return [self.layer(self.both[0](x)), (self.both[1](x),)]


@needs_torchvision
@pytest.mark.parametrize("options", [{}, dict(modulated=True), dict(modulated=True, bias=False)])
def test_the_traced_program(options):
    torch.manual_seed(0)
    model, x = Network(**options).eval(), torch.randn(1, 3, 16, 20)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        program = torch.jit.trace(for_pnnx(model), x)
        expected, (other,) = model(x)
        for actual, value in zip(program(x), (expected, other), strict=True):
            torch.testing.assert_close(actual, value, atol=1e-6, rtol=1e-5)
    assert model.state_dict().keys() == state.keys(), "the model itself is unchanged"
    kinds = [part.original_name for part in program.modules()]
    assert kinds.count("Conv2d") == 4, "each layer has a weight of its own"
    (layer,) = (part for part in program.modules() if part.original_name == "DeformConv2d")
    assert str(layer._c._type()).startswith("__torch__.torchvision.ops.deform_conv.")
    call = layer.graph.findNode("torchvision::deform_conv2d")
    inputs = [value.debugName() for value in layer.graph.inputs()][1:]
    own = [value.debugName() for value in call.inputs() if value.debugName() in inputs]
    assert own == inputs and len(inputs) == 2 + ("modulated" in options), (
        "pnnx reads the inputs by their order"
    )


@pytest.mark.parametrize(
    "layer",
    [
        PackedDeformConvTranspose2d(4, 6, 3),
        PackedDeformConv1d(4, 6, 3),
        PackedDeformConv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        PackedDeformConv2d(4, 6, 3, offset_groups=2),
        PackedDeformConv2d(4, 6, 3, deformable=False, modulated=True),
        mmcv.DeformConv2d(4, 6, 3, deform_groups=2),
    ],
)
def test_layers_that_ncnn_lacks(layer):
    with pytest.raises(ValueError, match=r"for_pnnx: model: expected 2-D .* one group .* got 0"):
        for_pnnx(nn.Sequential(layer))
