"""``mmcv.ops`` on dcnzoo's operators, with mmcv-lite, with a compiled mmcv, or without either.

Without: ``deform_conv2d``, ``modulated_deform_conv2d``, ``DeformConv2d``, ``DeformConv2dPack``,
``ModulatedDeformConv2d`` and ``ModulatedDeformConv2dPack`` can be imported from here as from
``mmcv.ops``, argument for argument (:mod:`dcnzoo.compat.mmcv.deform_conv`). They need torch only.

With: mmcv-lite is mmcv without its one compiled module, ``mmcv._ext``, and so without ``mmcv.ops``, which
MMDetection cannot be imported without. After :func:`install` an import of that name falls back to
:mod:`dcnzoo.compat.mmcv._ext`, as :mod:`dcnzoo.compat.extensions` describes. A compiled ``mmcv._ext`` is
found first.
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dcnzoo.compat import extensions, patches

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

EXTENSION = "mmcv._ext"
STAND_IN = Path(__file__).with_name("_ext.py")
PROVEN = ("cpu",)  # the devices on which dcnzoo's kernels have run

__all__ = [  # of deform_conv
    "DeformConv2d",
    "DeformConv2dPack",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "deform_conv2d",
    "modulated_deform_conv2d",
]


def __getattr__(name: str) -> object:
    # imported when asked for: `import dcnzoo` imports this module, but not torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.deform_conv"), name)


def install() -> None:
    """Lets ``import mmcv._ext`` fall back to dcnzoo's operators. Costs nothing until then."""
    extensions.answer(EXTENSION, STAND_IN)


def compiled_extension() -> ModuleType | None:
    """mmcv's own compiled module, or None where dcnzoo's stands in for it."""
    extension = importlib.import_module(EXTENSION)
    return None if extension.__file__ == str(STAND_IN) else extension


# The devices that a compiled mmcv has kernels for; None: it is not compiled. Set by use_dcnzoo_deform_conv.
_mmcv_devices: tuple[str, ...] | None = None


def runs_on_dcnzoo(operator: str, device: torch.device) -> bool:
    """Whether an operator of mmcv, by its name in :mod:`dcnzoo.compat.patches`, is dcnzoo's on this device.

    With mmcv-lite it always is. A compiled mmcv keeps its own on a device where dcnzoo's are not proven,
    unless it has none there.
    """
    if _mmcv_devices is None:
        return True
    if not patches.enabled(operator):
        return False
    if device.type in PROVEN:
        return True
    return device.type == "cuda" and ("cuda" not in _mmcv_devices or patches.enabled(patches.CUDA))


def largest_step(batch: int, most: int | None) -> int:
    """The largest ``im2col_step`` up to ``most`` that divides the batch, as mmcv's own kernels need it."""
    most = min(batch, most or 32)
    return next((step for step in range(most, 0, -1) if batch % step == 0), 1)


class _ByDevice:
    """In the place of ``ext_module`` in a module of mmcv: dcnzoo's functions or mmcv's, by device."""

    def __init__(self, operator: str, ours: ModuleType, theirs: ModuleType) -> None:
        self.operator, self.ours, self.theirs = operator, ours, theirs

    def __getattr__(self, name: str) -> Callable:
        def call(first: torch.Tensor, *args: object, **kwargs: object) -> object:
            chosen = self.ours if runs_on_dcnzoo(self.operator, first.device) else self.theirs
            return getattr(chosen, name)(first, *args, **kwargs)

        return call


def use_dcnzoo_deform_conv() -> None:
    """Runs mmcv's own deformable layers on dcnzoo's operators where :func:`runs_on_dcnzoo` says so.

    ``DeformConv2d``, ``ModulatedDeformConv2d`` and their functions, which several heads import past
    the registry, the deformable RoI pools, which RoI extractors look up in ``mmcv.ops`` by name, and
    ``MultiScaleDeformableAttention``, which DETRs import, find ``ext_module`` in their module at every call.
    Compiled mmcv has no RoI pool for the CPU, and of attention a function in PyTorch, which is replaced too.
    """
    global _mmcv_devices
    compiled = compiled_extension()
    if compiled is not None:
        with_cuda = compiled.get_compiling_cuda_version() != "not available"
        _mmcv_devices = ("cpu", "cuda") if with_cuda else ("cpu",)
    reason = "mmcv-lite has no kernels, and a compiled mmcv slower ones for the CPU"
    for name in patches.OPERATORS:
        target, change = f"mmcv.ops.{name}.ext_module", partial(_replace_kernels, name)
        patches.add(patches.Patch(name, target, reason, "mmcv 2.0 to 2.2", change))


def _replace_kernels(operator: str, changes: patches.Changes) -> None:
    extension, compiled = importlib.import_module(f"{__name__}._ext"), compiled_extension()
    # not `import … as`: mmcv.ops has functions of the same names as its modules
    module = importlib.import_module(f"mmcv.ops.{operator}")
    kernels = extension if compiled is None else _ByDevice(operator, extension, compiled)
    changes.set(module, "ext_module", kernels)
    name = "multi_scale_deformable_attn_pytorch"
    if hasattr(module, name):
        changes.set(module, name, extension.attention_in_place_of(getattr(module, name)))
