"""Layer-wise learning rate decay for detectors with InternImage, FlashInternImage or ViT-Adapter."""

import itertools
from collections.abc import Sequence
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


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


def vit_layer_of(name: str, num_layers: int) -> int:
    """Return the layer number of a parameter of a detector with ViT-Adapter, by the rule of its authors.

    0 is the ViT's embedding of patches and positions, ``k`` the k-th block, ``num_layers + 1`` everything
    else, also the adapter.
    """
    if not name.startswith("backbone."):
        return num_layers + 1
    part, _, rest = name.removeprefix("backbone.").partition(".")
    if part in ("patch_embed", "pos_embed", "norm_pre", "cls_token", "dist_token", "reg_token", "rope"):
        return 0
    return int(rest.partition(".")[0]) + 1 if part == "blocks" else num_layers + 1


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class CustomLayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """The optimizer wrapper for detectors with InternImage or ViT-Adapter: parameter groups by layer.

    The learning rate of a layer is multiplied by ``layer_decay_rate`` once for each layer above it. Vectors
    (biases, norms, factors) have no weight decay. Settings in ``paramwise_cfg``:

    - ``layer_decay_rate``
    - ``num_layers``: number of blocks of the ViT in ViT-Adapter.
    - ``depths``: of InternImage, in place of ``num_layers`` (official configs have both). With it,
      ``sampling_offsets`` have no weight decay, either.
    - ``backbone_small_lr``: multiply the learning rate of all layers with a decayed rate by 0.1.
    - ``offset_lr_scale``: factor for DETR's ``sampling_offsets`` and ``reference_points``, 1 by default;
      with ``dino_head`` it is 0.1 after the backbone.

    Raises:
        ValueError: ``paramwise_cfg`` lacks a setting or has an unknown one.
    """

    def _validate_cfg(self) -> None:
        cfg = set(self.paramwise_cfg)
        required = {"layer_decay_rate", "depths" if "depths" in cfg else "num_layers"}
        known = {*required, "num_layers", "backbone_small_lr", "dino_head", "offset_lr_scale"}
        if not required <= cfg <= known:
            raise ValueError(
                f"{type(self).__name__}: paramwise_cfg: expected {', '.join(sorted(required))}, optionally "
                f"{', '.join(sorted(known - required))}, got {', '.join(sorted(cfg)) or 'nothing'}"
            )

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", is_dcn_module: object = None
    ) -> None:
        cfg = self.paramwise_cfg
        depths = cfg.get("depths")
        last = (sum(depths) if depths else cfg["num_layers"]) + 1
        without = ("relative_position", "norm", "sampling_offsets") if depths else ()
        groups: dict[tuple, dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            vector = parameter.dim() == 1 or name.endswith(".bias")
            decays = not (vector or any(part in name for part in without))
            layer = layer_of(name, depths) if depths else vit_layer_of(name, last - 1)
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
