"""``mmcv.ops`` on dcnzoo's operators: with mmcv-lite, with a compiled mmcv, or without mmcv.

Without mmcv, you can import ``deform_conv2d``, ``modulated_deform_conv2d``, ``DeformConv2d``,
``DeformConv2dPack``, ``ModulatedDeformConv2d`` and ``ModulatedDeformConv2dPack`` from here instead of from
``mmcv.ops``. They have the same arguments and need only torch (:mod:`dcnzoo.compat.mmcv.deform_conv`).

mmcv-lite is mmcv without its compiled module ``mmcv._ext``. Without this module, ``mmcv.ops`` and MMDetection
cannot be imported. ``import dcnzoo`` makes ``import mmcv._ext`` fall back to :mod:`dcnzoo.compat.mmcv._ext`.
A compiled ``mmcv._ext`` stays in use.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

EXTENSION = "mmcv._ext"
OWN_FILE = Path(__file__).with_name("_ext.py")

__all__ = [  # of deform_conv
    "DeformConv2d",
    "DeformConv2dPack",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "deform_conv2d",
    "modulated_deform_conv2d",
]


def __getattr__(name: str) -> Any:
    # imported on access: `import dcnzoo` imports this module and must not import torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.deform_conv"), name)


class _Finder:
    """The last finder of ``sys.meta_path``, for a module that no other finder has found."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_file_location(name, OWN_FILE) if name == EXTENSION else None


def provide_extension() -> None:
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)


def compiled_extension() -> ModuleType | None:
    """Return mmcv's own compiled module, or None if dcnzoo's module is in use."""
    extension = importlib.import_module(EXTENSION)
    return None if extension.__file__ == str(OWN_FILE) else extension
