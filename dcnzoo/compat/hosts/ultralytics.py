"""Ultralytics YOLO, and the functions that YOLOv5 to v9 and YOLOX share with it.

Importing :mod:`dcnzoo.layers.packed` includes this host.
"""

import copy
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from dcnzoo.compat.after_import import call
from dcnzoo.compat.host import Evidence, Host
from dcnzoo.compat.patches import Changes, Patch

FUSE = "fuse_conv_and_bn"
MODULES = ("*torch_utils", "*model_utils")  # where projects have a copy of it


def _fuse(original: Callable, conv: Any, bn: Any) -> Any:
    """Fold the batch norm into a deformable layer, and keep the layer."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    from dcnzoo.layers.deform_conv import _DeformConvNd

    if not isinstance(conv, _DeformConvNd):
        return original(conv, bn)
    norm = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *norm)
    return conv.requires_grad_(False)


def _keep_when_fused(changes: Changes) -> None:
    def wrap(module: ModuleType) -> None:
        original = getattr(module, "__dict__", {}).get(FUSE)
        if original is None or getattr(original, "__module__", None) != module.__name__:
            return
        changes.wrap(module, FUSE, _fuse)
        for other in list(sys.modules.values()):  # that have imported it by name
            if getattr(other, "__dict__", {}).get(FUSE) is original:
                changes.set(other, FUSE, vars(module)[FUSE])

    for pattern in MODULES:
        changes.callback(call(pattern, wrap, f"def {FUSE}("))


def _load(original: Callable, model: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
    """Convert the convolutions of a new network that are deformable layers in the weights, then load them."""
    source: Any = (weights.get("ema") or weights.get("model")) if isinstance(weights, dict) else weights
    packed = sys.modules.get("dcnzoo.layers.packed")
    if packed and hasattr(source, "named_modules"):
        modules = dict(model.named_modules())
        for name, pack in source.named_modules():
            weight: Any = getattr(modules.get(name), "weight", None)
            if isinstance(pack, packed._Pack) and getattr(weight, "shape", None) == pack.weight.shape:
                parent, _, key = name.rpartition(".")
                modules[parent]._modules[key] = copy.deepcopy(pack).float().to(weight.device)
    return original(model, weights, *args, **kwargs)


def _convert_when_loaded(changes: Changes) -> None:
    changes.callback(
        call("ultralytics.nn.tasks", lambda module: changes.wrap(module.BaseModel, "load", _load))
    )


HOSTS = (
    Host(
        "ultralytics",
        {"Ultralytics YOLO": Evidence("8.2.103, 8.4.190", "2026-11-26", "training, prediction, export")},
        patches=(
            Patch(
                FUSE,
                f"{FUSE} in {', '.join(MODULES)}",
                "they replace a deformable layer by a plain convolution",
                "ultralytics < 8.3.189; copies in YOLOv5 to v9, YOLOX",
                _keep_when_fused,
            ),
            Patch(
                "ultralytics_load",
                "ultralytics.nn.tasks.BaseModel.load",
                "a training builds a plain network and drops the offsets of the weights",
                "all",
                _convert_when_loaded,
            ),
        ),
    ),
)
