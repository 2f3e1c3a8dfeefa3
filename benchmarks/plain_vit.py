"""The ViT of the demo's ViT-Adapter alone: ``python -m benchmarks.demo --arms vit --arms vit-adapter``."""

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from dcnzoo.backbones import ViTAdapter


@MODELS.register_module()
class PlainViT(BaseModule):
    """The ViT's last tokens as a map of stride 16, and a transposed convolution of it as one of stride 8."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        adapter = ViTAdapter(**options)
        channels = adapter.embed_dim
        self.parts = nn.ModuleDict({"patch_embed": adapter.patch_embed, "blocks": adapter.blocks})
        self.pos_embed, self.prefix_rows = adapter.pos_embed, adapter.prefix_rows
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(2)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.parts["patch_embed"].proj(x)
        tokens = embedded.flatten(2).transpose(1, 2) + self.pos_embed[:, self.prefix_rows :]
        for block in self.parts["blocks"]:
            tokens = block(tokens)
        # contiguous: see dcnzoo/backbones/vit_adapter.py
        level = tokens.transpose(1, 2).unflatten(2, embedded.shape[-2:]).contiguous()
        return self.norms[0](self.up(level)), self.norms[1](level)
