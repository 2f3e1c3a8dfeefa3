"""ViT-Adapter in mmengine's registry."""

from collections.abc import Mapping
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from dcnzoo import backbones
from dcnzoo.openmmlab.models.intern_image import Pretrained


@MODELS.register_module(force=True)
class ViTAdapter(Pretrained, backbones.ViTAdapter, BaseModule):
    """:class:`dcnzoo.backbones.ViTAdapter` with ``init_cfg``.

    ``pretrained`` is loaded by ``init_weights()``, when a training begins: a program that loads a trained
    detector downloads nothing. A checkpoint of ``init_cfg`` is loaded after it.
    """

    def __init__(
        self,
        vit: str | Mapping[str, Any] | nn.Module,
        *,
        pretrained: bool | str = False,
        init_cfg: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(vit=vit, init_cfg=init_cfg, **options)
        self.pretrained = pretrained

    def init_weights(self) -> None:
        """Load the ViT's weights, and the checkpoint of ``init_cfg``, if any."""
        if self.pretrained:
            self.load_pretrained(self.pretrained)
        super().init_weights()
