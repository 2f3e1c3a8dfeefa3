"""InternImage and FlashInternImage in mmengine's registries, and their layer-wise learning rate decay."""

import copy
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from dcnzoo import backbones
from dcnzoo.layers.tracing import Refuses


class _Pretrained(Refuses, BaseModule):
    """Adds ``init_cfg`` to a backbone.

    Args:
        init_cfg: ``dict(type='Pretrained', checkpoint=…)`` or None. A classifier's checkpoint works too.
    """

    def __init__(self, *args: Any, init_cfg: dict | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.init_cfg = copy.deepcopy(init_cfg)

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``, if any. The constructor has initialised the layers."""
        if not self.init_cfg:
            return
        if self.init_cfg.get("type") != "Pretrained":
            self._refuse("init_cfg", "dict(type='Pretrained', checkpoint=…) or None", self.init_cfg)
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
class InternImage(_Pretrained, backbones.InternImage):
    """:class:`dcnzoo.backbones.InternImage` with ``init_cfg``."""


@MODELS.register_module(force=True)
class FlashInternImage(_Pretrained, backbones.FlashInternImage):
    """:class:`dcnzoo.backbones.FlashInternImage` with ``init_cfg``."""


def layer_of(name: str, depths: Sequence[int]) -> int:
    """Return the layer number of a detector's parameter, by the rule of the official code.

    0 is the backbone's stem (and DETR's level embedding), ``k`` the k-th block, ``sum(depths) + 1``
    everything after the backbone. A downsampling layer has the number of the next level's first block. The
    norm after the last level has the number of that level's first block, as in the official code.
    """
    before = [0, *itertools.accumulate(depths)]
    if name.startswith("backbone.patch_embed") or "level_embed" in name:
        return 0
    if not name.startswith("backbone.levels"):
        return before[-1] + 1
    _, _, level, kind, *rest = name.split(".")
    if kind in ("downsample", "norm"):
        return 1 + before[min(int(level) + 1, len(depths) - 1)]
    return 1 + before[int(level)] + int(rest[0])


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class CustomLayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """The optimizer wrapper for (Flash)InternImage's detectors: parameter groups by layer.

    The learning rate of a layer is multiplied by ``layer_decay_rate`` once for each layer above it. Vectors
    (biases, norms, factors) and ``sampling_offsets`` have no weight decay. Settings in ``paramwise_cfg``:

    - ``depths``: of the backbone. ``num_layers``, their sum, is optional (official configs have it).
    - ``layer_decay_rate``
    - ``backbone_small_lr``: multiply the learning rate of all layers with a decayed rate by 0.1.
    - ``offset_lr_scale``: factor for DETR's ``sampling_offsets`` and ``reference_points``, 1 by default;
      with ``dino_head`` it is 0.1 after the backbone.

    Raises:
        ValueError: ``paramwise_cfg`` lacks a setting or has an unknown one.
    """

    def _validate_cfg(self) -> None:
        cfg = set(self.paramwise_cfg)
        required = {"depths", "layer_decay_rate"}
        known = {*required, "num_layers", "backbone_small_lr", "dino_head", "offset_lr_scale"}
        if not required <= cfg <= known:
            raise ValueError(
                f"{type(self).__name__}: paramwise_cfg: expected {', '.join(sorted(required))}, optionally "
                f"{', '.join(sorted(known - required))}, got {', '.join(sorted(cfg)) or 'nothing'}"
            )

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module: object = None
    ) -> None:
        cfg = self.paramwise_cfg
        last = sum(cfg["depths"]) + 1
        groups: dict[tuple, dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            vector = parameter.dim() == 1 or name.endswith(".bias")
            decays = not (vector or any(s in name for s in ("relative_position", "norm", "sampling_offsets")))
            layer = layer_of(name, cfg["depths"])
            points = "sampling_offsets" in name or "reference_points" in name
            key = (layer, decays, points)
            if key not in groups:
                scale = cfg["layer_decay_rate"] ** (last - layer)
                if scale < 1 and cfg.get("backbone_small_lr", False):
                    scale *= 0.1
                if points:
                    behind = layer == last and cfg.get("dino_head", False)
                    scale *= 0.1 if behind else cfg.get("offset_lr_scale", 1.0)
                groups[key] = dict(params=[], lr=scale * self.base_lr, lr_scale=scale)
                if self.base_wd is not None:
                    groups[key]["weight_decay"] = self.base_wd if decays else 0.0
            groups[key]["params"].append(parameter)
        params.extend(groups.values())
