"""InternImage, FlashInternImage and ViT-Adapter in mmengine's registry."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from dcnzoo import backbones
from dcnzoo.layers.base import refuse


class Pretrained(nn.Module):
    """Adds ``init_cfg`` to a backbone. It must precede the backbone, and BaseModule follow it.

    Args:
        init_cfg: ``dict(type='Pretrained', checkpoint=…)`` or None. A classifier's checkpoint works too.
    """

    def __init__(self, *args: Any, init_cfg: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.init_cfg = copy.deepcopy(init_cfg)

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, if any. The constructor has initialised the layers."""
        if not self.init_cfg:
            return
        if self.init_cfg.get("type") != "Pretrained":
            refuse(self, "init_cfg", "dict(type='Pretrained', checkpoint=…) or None", self.init_cfg)
        path = self.init_cfg["checkpoint"]
        state = CheckpointLoader.load_checkpoint(path, map_location="cpu")
        state = next((state[key] for key in ("state_dict", "model_ema", "model") if key in state), state)
        state = {key.removeprefix("module.").removeprefix("backbone."): value for key, value in state.items()}
        missing, _ = self.load_state_dict(state, strict=False)  # ignores a classifier's head
        if len(missing) == len(self.state_dict()):
            raise RuntimeError(
                f"{type(self).__name__}: {path}: expected parameters of this model, "
                f"found none of {len(missing)}"
            )
        if missing:
            print_log(f"{path}: missing parameters: {', '.join(missing)}", "current", logging.WARNING)


@MODELS.register_module(force=True)
class InternImage(Pretrained, backbones.InternImage, BaseModule):
    """:class:`dcnzoo.backbones.InternImage` with ``init_cfg``."""


@MODELS.register_module(force=True)
class FlashInternImage(Pretrained, backbones.FlashInternImage, BaseModule):
    """:class:`dcnzoo.backbones.FlashInternImage` with ``init_cfg``."""


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
