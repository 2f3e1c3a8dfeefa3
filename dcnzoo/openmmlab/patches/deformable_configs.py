"""A hook around every build of a module; it applies :mod:`dcnzoo.openmmlab.config.deformable`."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from mmcv.cnn import build_conv_layer
from mmengine.logging import print_log
from mmengine.registry import MODELS, Registry
from torch import nn

from dcnzoo.compat.patches import Changes
from dcnzoo.layers.convert import Where, packed_layer, replace_convolutions, to_deformable
from dcnzoo.layers.offsets import accept_legacy_offsets
from dcnzoo.layers.packed import PackedDeformConv2d
from dcnzoo.openmmlab.config.deformable import LAYERS, SETTINGS, patterns_of, split_settings
from dcnzoo.utils.text import counted

Make = Callable[[Any], nn.Module]  # the new module for a convolution


def deformable_configs(changes: Changes) -> None:
    """Accept ``dcn``, ``stage_with_dcn`` and ``to_deformable`` in the config of any module."""
    changes.wrap(Registry, "build", _build)


def _build(build: Callable, registry: Registry, cfg: object, *args: object, **kwargs: object) -> object:
    if not isinstance(cfg, dict) or registry.name != MODELS.name:
        return build(registry, cfg, *args, **kwargs)
    settings: dict[str, Any] = {}
    if cfg.keys() & SETTINGS:
        cfg, settings = split_settings(cfg, _class_of(cfg, registry))
    module = build(registry, cfg, *args, **kwargs)
    for setting, where, make in _replacements(module, settings):
        caller = f"{type(module).__name__}: {setting}"
        with torch.random.fork_rng(devices=[]):  # later layers start as if there were only the new ones
            report = replace_convolutions(module, where, make, subclasses=setting == "dcn", caller=caller)
        for name, reason in report.refused.items():
            print_log(f"{caller}: {name} is not replaced: it {reason}", "current", logging.WARNING)
        if hasattr(module, "_freeze_stages"):
            module._freeze_stages()  # again, to freeze the new layers too
    if isinstance(module, nn.Module) and any(isinstance(m, PackedDeformConv2d) for m in module.modules()):
        accept_legacy_offsets(module)
    return module


def _class_of(cfg: dict, registry: Registry) -> type | None:
    """Return the class of a module's config. ``config/tree.py`` has it for any, but needs mmdet."""
    name = cfg.get("type")
    if not isinstance(name, str):
        return name
    with registry.switch_scope_and_registry(cfg.get("_scope_")) as scope:
        return scope.get(name)


def _replacements(module: nn.Module, settings: dict) -> Iterator[tuple[str, Where, Make]]:
    """Yield the settings that replace convolutions of a module, with which and by what."""
    owner = type(module).__name__
    if layer := parse_dcn(settings.get("dcn"), owner):
        if patterns := _with_stages(module, settings.get("stage_with_dcn")):
            yield "dcn", *_by_dcn(layer, patterns)
        else:
            text = f"{owner}: stage_with_dcn: expected True for a stage: dcn replaces no convolution"
            print_log(text, "current", logging.WARNING)
    if settings.get("to_deformable") is not None:
        yield "to_deformable", *_by_to_deformable(module, settings["to_deformable"])


def parse_dcn(dcn: bool | str | dict | None, owner: str) -> dict | None:
    """Convert the option ``dcn`` to the config of a convolution layer, or None.

    A dict is the config of a registered layer; ``fallback_on_stride=True`` in it leaves strided convolutions
    as they are.
    """
    if dcn is None or dcn is False:
        return None
    if dcn is True or (isinstance(dcn, str) and dcn in LAYERS):
        return dict(LAYERS["v2" if dcn is True else dcn])
    if not isinstance(dcn, dict) or "type" not in dcn:
        raise ValueError(
            f"{owner}: dcn: expected True, {', '.join(map(repr, LAYERS))}, a dict with a type such as "
            f"dict(type='DCNv2', deform_groups=1), False or None, got {dcn!r}"
        )
    return dict(dcn)


def _with_stages(module: nn.Module, chosen: Sequence[bool] | None) -> list[str]:
    """The module's patterns with the names of the stages in ``chosen``; by default all but the first."""
    patterns = patterns_of(type(module))
    if "{stage}" not in patterns[0]:
        return list(patterns)
    owner = type(module).__name__
    stages = getattr(module, "res_layers", ["layer1", "stage2", "stage3", "stage4"])  # HRNet's
    # the 3×3 convolutions of a trident block share one weight in three dilations
    trident = any(base.__name__ == "TridentResNet" for base in type(module).__mro__)
    if chosen is None:
        chosen = [False, *[True] * (len(stages) - 1)]
        chosen[-1] = not trident
    is_list = isinstance(chosen, Sequence) and all(value in (True, False) for value in chosen)
    expected = ""
    if not is_list or len(chosen) != len(stages):
        expected = f"{counted(len(stages), 'values')}, one for each stage"
    elif trident and chosen[-1]:
        expected = "False for the last stage, which has trident convolutions"
    if expected:
        raise ValueError(f"{owner}: stage_with_dcn: expected {expected}, got {chosen!r}")
    names = [stage for stage, deformable in zip(stages, chosen, strict=True) if deformable]
    return [pattern.format(stage=stage) for stage in names for pattern in patterns]


def _by_dcn(layer: dict, patterns: Sequence[str]) -> tuple[Where, Make]:
    strided = not layer.pop("fallback_on_stride", False)

    def where(name: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Conv2d) or not any(fnmatchcase(name, pattern) for pattern in patterns):
            return False
        return strided or max(module.stride) == 1

    def make(conv: nn.Conv2d) -> nn.Module:
        return build_conv_layer(
            layer,
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
        )

    return where, make


def _by_to_deformable(module: nn.Module, setting: object) -> tuple[Where, Make]:
    options: dict[str, Any] = dict(setting) if isinstance(setting, dict) else {"where": setting}
    try:
        inspect.signature(to_deformable).bind(module, **options)
    except TypeError as error:
        raise ValueError(
            f"{type(module).__name__}: to_deformable: expected a pattern or the arguments of "
            f"dcnzoo.to_deformable, such as dict(where='*.conv2', kind='v2'), got {options}: {error}"
        ) from None
    return options.pop("where"), packed_layer(**options)
