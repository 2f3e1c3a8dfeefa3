"""Ultralytics YOLO, the functions that YOLOv5 to v9 and YOLOX share with it, and mmcv's ``fuse_conv_bn``.

Importing :mod:`dcnzoo.layers.packed` includes this host.
"""

import copy
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from dcnzoo.compat.after_import import call
from dcnzoo.compat.host import Host
from dcnzoo.compat.patches import Changes, Patch

FUSE = "fuse_conv_and_bn"
MODULES = ("*torch_utils", "*model_utils")  # where projects have a copy of it


def _fuse_apart(original: Callable, module: Any) -> Any:
    """Fuse the children before and after a deformable layer separately.

    mmcv fuses a norm with the last ``nn.Conv2d`` before it, which may be the one before a deformable layer.
    """
    from torch import nn

    from dcnzoo.layers.deform_conv import _Deformable

    parts = [nn.Module()]
    for name, child in module.named_children():
        if isinstance(child, _Deformable):
            parts.append(nn.Module())
        else:
            parts[-1]._modules[name] = child
    for part in parts:
        module._modules.update(original(part)._modules)
    return module


def _fuse(original: Callable, conv: Any, bn: Any) -> Any:
    """Fold the batch norm into a deformable layer, and keep the layer."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    from dcnzoo.layers.deform_conv import _DeformConvNd

    if not isinstance(conv, _DeformConvNd):
        return original(conv, bn)
    norm = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *norm)
    return conv.requires_grad_(False)


def _wrap(changes: Changes, name: str, wrapper: Callable, patterns: tuple[str, ...]) -> None:
    """Wrap a function in the modules that define it, and in those that have imported it by name."""

    def wrap(module: ModuleType) -> None:
        original = getattr(module, "__dict__", {}).get(name)
        if original is None or getattr(original, "__module__", None) != module.__name__:
            return
        changes.wrap(module, name, wrapper)
        for other in list(sys.modules.values()):
            if getattr(other, "__dict__", {}).get(name) is original:
                changes.set(other, name, vars(module)[name])

    for pattern in patterns:
        changes.callback(call(pattern, wrap, f"def {name}("))


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
        ("Ultralytics YOLO",),
        patches=(
            Patch(
                FUSE,
                f"{FUSE} in {', '.join(MODULES)}",
                "they replace a deformable layer by a plain convolution",
                "ultralytics < 8.3.189; copies in YOLOv5 to v9, YOLOX",
                lambda changes: _wrap(changes, FUSE, _fuse, MODULES),
            ),
            Patch(
                "fuse_conv_bn",
                "mmcv.cnn.fuse_conv_bn",
                "it fuses the norm after a deformable layer with the convolution before that layer",
                "all",
                lambda changes: _wrap(changes, "fuse_conv_bn", _fuse_apart, ("mmcv.cnn.utils.fuse_conv_bn",)),
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
