"""Backbones and packed layers with huggingface_hub's mixin (docs/detectors.md): ``nox -s others``."""

import pytest
import torch

from dcnzoo import backbones, layers

from ..modules import randomise

huggingface_hub = pytest.importorskip("huggingface_hub", exc_type=ImportError)
pytest.importorskip("safetensors", exc_type=ImportError)


class Backbone(backbones.InternImage, huggingface_hub.PyTorchModelHubMixin):
    pass


class Pack(layers.PackedDeformConv2d, huggingface_hub.PyTorchModelHubMixin):
    pass


MODULES = {
    Backbone: (dict(channels=16, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8), num_classes=5), (3, 32, 64)),
    Pack: (dict(in_channels=6, out_channels=4, kernel_size=(3, 1), modulated=True), (6, 8, 9)),
}


@pytest.mark.parametrize("kind", MODULES)
def test_round_trip(kind, tmp_path):
    options, size = MODULES[kind]
    module = randomise(kind(**options), 0.1).eval()
    module.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path).eval()
    x = torch.randn(2, *size)
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
