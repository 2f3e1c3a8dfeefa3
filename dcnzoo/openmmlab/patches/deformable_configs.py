"""The settings ``dcn`` and ``to_deformable`` in the config of any module: one hook around every build.

``dcn`` names a layer, which replaces the convolutions that :data:`CONVOLUTIONS` lists for the module's class.
``to_deformable`` replaces any convolutions of any module.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from mmcv.cnn import build_conv_layer
from mmengine.logging import print_log
from mmengine.registry import MODELS, Registry
from torch import nn

from dcnzoo.compat.patches import Changes
from dcnzoo.layers.convert import to_deformable
from dcnzoo.layers.offsets import accept_legacy_offsets
from dcnzoo.layers.packed import PackedDeformConv2d

# Class or base class, in mmdet, mmpose, mmpretrain or mmseg -> patterns for names of convolutions. {stage}
# stands for the names of the stages, from c2 on. The first class of the table that fits counts.
CONVOLUTIONS = {
    "ResNeSt": ("{stage}.*.conv2.conv",),
    "Res2Net": ("{stage}.*.convs.*",),
    "ResNet": ("{stage}.*.conv2",),
    "HRNet": ("{stage}.*.conv2",),
    "PAFPN": ("fpn_convs.*.conv", "pafpn_convs.*.conv"),
    "FPN": ("fpn_convs.*.conv",),
}
PACKAGES = ("mmdet", "mmpose", "mmpretrain", "mmseg")
LAYERS = {
    "v1": dict(type="DCN", deform_groups=1),
    "v2": dict(type="DCNv2", deform_groups=1),
    "v3": dict(type="DCNv3Conv"),
    "v4": dict(type="DCNv4Conv"),
}


def deformable_configs(changes: Changes) -> None:
    """Accept ``dcn``, ``stage_with_dcn`` and ``to_deformable`` in the config of any module."""
    changes.wrap(Registry, "build", _build)


def short_resnets(changes: Changes) -> None:
    """Accept ``depth=14`` and ``depth=26``: one or two Bottlenecks per stage."""
    from mmdet.models.backbones.resnet import Bottleneck, ResNet

    depths = {14: (Bottleneck, (1, 1, 1, 1)), 26: (Bottleneck, (2, 2, 2, 2))}
    changes.set(ResNet, "arch_settings", {**depths, **ResNet.arch_settings})


def _build(build: Callable, registry: Registry, cfg: object, *args: object, **kwargs: object) -> object:
    if not isinstance(cfg, dict) or registry.name != MODELS.name:
        return build(registry, cfg, *args, **kwargs)
    plain = cfg.copy()
    options = plain.pop("to_deformable", None)
    dcn = stage_with_dcn = None
    if cfg.keys() & {"dcn", "stage_with_dcn"} and (patterns := _patterns(cfg, registry)):
        dcn, stage_with_dcn = plain.pop("dcn", None), plain.pop("stage_with_dcn", None)
    try:
        module = build(registry, plain, *args, **kwargs)
    except TypeError as error:
        if not re.search(r"unexpected keyword argument '(stage_with_)?dcn'", str(error)):
            raise
        for name in ("dcn", "stage_with_dcn"):
            plain.pop(name, None)
        raise ValueError(_without_dcn(cfg.get("dcn"), build(registry, plain, *args, **kwargs))) from None
    if layer := parse_dcn(dcn, owner=type(module).__name__):
        with torch.random.fork_rng(devices=[]):  # later layers start as if there were only the new ones
            _replace(module, layer, _with_stages(module, patterns, stage_with_dcn))
    if options is not None:
        _convert(module, options)
    if isinstance(module, nn.Module) and any(isinstance(m, PackedDeformConv2d) for m in module.modules()):
        accept_legacy_offsets(module)
    return module


def _patterns(cfg: dict, registry: Registry) -> tuple[str, ...]:
    """The patterns of CONVOLUTIONS for the class that ``cfg`` names; empty if there are none."""
    cls = cfg.get("type")
    if isinstance(cls, str):
        with registry.switch_scope_and_registry(cfg.get("_scope_")) as scope:
            cls = scope.get(cls)
    bases = {
        base.__name__ for base in getattr(cls, "__mro__", ()) if base.__module__.split(".")[0] in PACKAGES
    }
    return next((patterns for name, patterns in CONVOLUTIONS.items() if name in bases), ())


def parse_dcn(dcn: bool | str | dict | None, owner: str) -> dict | None:
    """Convert the option ``dcn`` to the config of a convolution layer, or None.

    ``True`` and ``'v2'`` select DCNv2, ``'v1'`` DCN, ``'v3'`` and ``'v4'`` DCNv3 and DCNv4 as replacements
    for a convolution. ``None`` and ``False`` select none. A dict is the config of a registered layer;
    ``fallback_on_stride=True`` in it leaves strided convolutions as they are.

    Args:
        owner: class name for the error message.

    Raises:
        ValueError: any other value, or a dict whose ``type`` is not registered.
    """
    if dcn is None or dcn is False:
        return None
    if dcn is True or (isinstance(dcn, str) and dcn in LAYERS):
        return dict(LAYERS["v2" if dcn is True else dcn])
    if not isinstance(dcn, dict) or "type" not in dcn:
        raise ValueError(
            f"{owner}: dcn: expected True, 'v1', 'v2', 'v3', 'v4', a dict with a type such as "
            f"dict(type='DCNv2', deform_groups=1), False or None, got {dcn!r}"
        )
    with MODELS.switch_scope_and_registry(None) as registry:
        if isinstance(dcn["type"], str) and registry.get(dcn["type"]) is None:
            raise ValueError(
                f"{owner}: dcn: type: expected the name of a registered convolution, 'DCN', 'DCNv2', "
                f"'DCNv3Conv', 'DCNv4Conv' or your own, got {dcn['type']!r}"
            )
    return dict(dcn)


def _with_stages(module: nn.Module, patterns: Sequence[str], chosen: Sequence[bool] | None) -> list[str]:
    """The patterns with the names of the stages in ``chosen``; by default all but the first."""
    if "{stage}" not in patterns[0]:
        return list(patterns)
    owner = type(module).__name__
    stages = getattr(module, "res_layers", ["layer1", "stage2", "stage3", "stage4"])  # HRNet's
    # the 3×3 convolutions of a trident block share one weight in three dilations
    trident = any(base.__name__ == "TridentResNet" for base in type(module).__mro__)
    if chosen is None:
        chosen = [False, *[True] * (len(stages) - 1)]
        chosen[-1] = not trident
    if len(chosen) != len(stages):
        raise ValueError(
            f"{owner}: stage_with_dcn: expected {len(stages)} values, one for each stage, got {chosen}"
        )
    if trident and chosen[-1]:
        raise ValueError(
            f"{owner}: stage_with_dcn: expected False for the last stage, which has trident convolutions, "
            f"got {chosen}"
        )
    names = [stage for stage, deformable in zip(stages, chosen, strict=True) if deformable]
    return [pattern.format(stage=stage) for stage in names for pattern in patterns]


def _replace(module: nn.Module, layer: dict, patterns: Sequence[str]) -> None:
    fallback_on_stride = layer.pop("fallback_on_stride", False)
    for name, conv in list(module.named_modules()):
        if not any(fnmatchcase(name, pattern) for pattern in patterns) or not isinstance(conv, nn.Conv2d):
            continue
        if fallback_on_stride and max(conv.stride) > 1:
            continue
        deformable = build_conv_layer(
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
        module.set_submodule(name, deformable)
    if hasattr(module, "_freeze_stages"):
        module._freeze_stages()  # again, to freeze the new layers too


def _convert(module: nn.Module, options: object) -> None:
    if not isinstance(options, dict):
        options = {"where": options}
    try:
        inspect.signature(to_deformable).bind(module, **options)
    except TypeError as error:
        raise ValueError(
            f"{type(module).__name__}: to_deformable: expected a pattern or the arguments of "
            f"dcnzoo.to_deformable, such as dict(where='*.conv2', kind='v2'), got {options}: {error}"
        ) from None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "to_deformable: .* not replaced")
        report = to_deformable(module, **options)
    refused = "".join(f"; {name} not converted: {why}" for name, why in report.refused.items())
    replaced = f"{len(report.replaced)} convolutions replaced{refused}"
    print_log(f"{type(module).__name__}: to_deformable: {replaced}", "current")


def _without_dcn(dcn: object, module: nn.Module) -> str:
    spatial = [
        name
        for name, child in module.named_modules()
        if type(child) is nn.Conv2d and max(child.kernel_size) > 1
    ]
    where = f"{spatial[-1].partition('.')[0]}.*" if spatial else "*"
    return (
        f"{type(module).__name__}: dcn: expected a module with this argument, got one without; write "
        f"to_deformable=dict(where='{where}', kind='v2') instead of dcn={dcn!r}. where is a pattern "
        f"for the names of convolutions, here {spatial[-1] if spatial else 'none'} and others"
    )
