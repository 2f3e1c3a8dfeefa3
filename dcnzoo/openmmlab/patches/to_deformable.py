"""The setting ``to_deformable`` in the config of any module."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS

from dcnzoo.compat.patches import Changes
from dcnzoo.layers.convert import to_deformable


def to_deformable_in_configs(changes: Changes) -> None:
    """Accept ``to_deformable=dict(where=…, kind='v2')`` in the config of any module.

    After construction, the module is converted by :func:`dcnzoo.to_deformable`. If a config sets ``dcn`` for
    a backbone without that argument, the error suggests a ``to_deformable`` instead.
    """
    for registry in {id(r): r for r in (MODELS, *MODELS.children.values())}.values():
        changes.wrap(registry, "build_func", _build_deformable)


def _build_deformable(build: Callable, cfg: object, *args: object, **kwargs: object) -> object:
    if not isinstance(cfg, dict):
        return build(cfg, *args, **kwargs)
    options, plain = cfg.get("to_deformable"), cfg.copy()
    plain.pop("to_deformable", None)
    try:
        module = build(plain, *args, **kwargs)
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument '(stage_with_)?dcn'", str(error))
        if "dcn" not in cfg or not unexpected:
            raise
        for name in ("dcn", "stage_with_dcn"):
            plain.pop(name, None)
        raise ValueError(_instead_of_dcn(cfg, build(plain, *args, **kwargs))) from None
    if options is not None:
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
            found = to_deformable(module, **options)
        left = "".join(f"; {name} not converted: {why}" for name, why in found.refused.items())
        replaced = f"{len(found.replaced)} convolutions replaced{left}"
        print_log(f"{type(module).__name__}: to_deformable: {replaced}", "current")
    return module


def _instead_of_dcn(cfg: dict, module: torch.nn.Module) -> str:
    spatial = [
        name
        for name, child in module.named_modules()
        if type(child) is torch.nn.Conv2d and max(child.kernel_size) > 1
    ]
    where = f"{spatial[-1].partition('.')[0]}.*" if spatial else "*"
    return (
        f"{type(module).__name__}: dcn: expected a module with this argument, got one without; write "
        f"to_deformable=dict(where='{where}', kind='v2') instead of dcn={cfg['dcn']!r}. where is a pattern "
        f"for the names of convolutions, here {spatial[-1] if spatial else 'none'} and others"
    )
