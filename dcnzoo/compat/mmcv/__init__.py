"""``mmcv.ops`` on dcnzoo's operators, with mmcv-lite, with a compiled mmcv, or without either.

Without: ``deform_conv2d``, ``modulated_deform_conv2d``, ``DeformConv2d``, ``DeformConv2dPack``,
``ModulatedDeformConv2d`` and ``ModulatedDeformConv2dPack`` can be imported from here as from
``mmcv.ops``, argument for argument (:mod:`dcnzoo.compat.mmcv.deform_conv`). They need torch only.

With: mmcv-lite is mmcv without its one compiled module, ``mmcv._ext``, and so without ``mmcv.ops``, which
MMDetection cannot be imported without. :func:`install` puts a finder behind all others, which
answers that one name with :mod:`dcnzoo.compat.mmcv._ext`. A compiled ``mmcv._ext`` is found before
it.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

EXTENSION = "mmcv._ext"
STAND_IN = Path(__file__).with_name("_ext.py")


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


class _Finder:
    """A meta-path finder that knows one module."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(EXTENSION, STAND_IN) if name == EXTENSION else None


def install() -> None:
    """Lets ``import mmcv._ext`` fall back to dcnzoo's operators. Costs nothing until then."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)


def use_dcnzoo_deform_conv() -> None:
    """Runs mmcv's own deformable layers on dcnzoo's operators, also where mmcv is compiled.

    ``DeformConv2d``, ``ModulatedDeformConv2d`` and their functions, which several heads import past
    the registry, the deformable RoI pools, which RoI extractors look up in ``mmcv.ops`` by name, and
    ``MultiScaleDeformableAttention``, which DETRs import, find ``ext_module`` in their module at every call.
    Compiled mmcv has no RoI pool for the CPU, and of attention a function in PyTorch, whose place is taken.
    """
    extension = importlib.import_module(f"{__name__}._ext")
    for name in ("deform_conv", "modulated_deform_conv", "deform_roi_pool", "multi_scale_deform_attn"):
        # not `import … as`: mmcv.ops has functions of the same names as its modules
        module = importlib.import_module(f"mmcv.ops.{name}")
        module.ext_module = extension
    name = "multi_scale_deformable_attn_pytorch"
    if not hasattr(getattr(module, name), "__wrapped__"):
        setattr(module, name, extension.attention_in_place_of(getattr(module, name)))
