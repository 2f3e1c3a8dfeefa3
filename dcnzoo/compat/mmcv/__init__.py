"""``mmcv.ops`` on dcnzoo's operators: with mmcv-lite, with a compiled mmcv, or without mmcv.

Without mmcv, you can import ``deform_conv2d``, ``modulated_deform_conv2d``, ``DeformConv2d``,
``DeformConv2dPack``, ``ModulatedDeformConv2d`` and ``ModulatedDeformConv2dPack`` from here instead of from
``mmcv.ops``. They have the same arguments and need only torch (:mod:`dcnzoo.compat.mmcv.deform_conv`).

mmcv-lite is mmcv without its compiled module ``mmcv._ext``. Without this module, ``mmcv.ops`` and MMDetection
cannot be imported. After :func:`install`, ``import mmcv._ext`` falls back to :mod:`dcnzoo.compat.mmcv._ext`,
as :mod:`dcnzoo.compat.host` describes. A compiled ``mmcv._ext`` stays in use.
"""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dcnzoo.compat import host, patches

if TYPE_CHECKING:
    import torch

EXTENSION = "mmcv._ext"
STAND_IN = Path(__file__).with_name("_ext.py")
DEFAULT_DEVICES = ("cpu",)  # where dcnzoo's kernels replace others unasked; on GPUs none were compared

__all__ = [  # of deform_conv
    "DeformConv2d",
    "DeformConv2dPack",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "deform_conv2d",
    "modulated_deform_conv2d",
]


def __getattr__(name: str) -> object:
    # imported on access: `import dcnzoo` imports this module and must not import torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.deform_conv"), name)


def install() -> None:
    """Make ``import mmcv._ext`` fall back to dcnzoo's operators. This imports nothing yet."""
    host.known()[EXTENSION].provide()


def compiled_extension() -> ModuleType | None:
    """mmcv's own compiled module, or None if dcnzoo's module is in use."""
    extension = importlib.import_module(EXTENSION)
    return None if extension.__file__ == str(STAND_IN) else extension


# The devices for which a compiled mmcv has kernels. None: mmcv-lite. Set by use_dcnzoo_deform_conv.
_mmcv_devices: tuple[str, ...] | None = None


def runs_on_dcnzoo(operator: str, device: "torch.device") -> bool:
    """Whether an operator of mmcv runs on dcnzoo's kernels on this device.

    With mmcv-lite it always does. A compiled mmcv keeps its own kernels if the operator's patch is off. On
    CUDA it also keeps them if the patch is on, unless it has none or ``cuda`` is switched on.

    Args:
        operator: its name in :mod:`dcnzoo.compat.patches`.
    """
    if _mmcv_devices is None:
        return True
    if not patches.enabled(operator):
        return False
    if device.type in DEFAULT_DEVICES:
        return True
    return device.type == "cuda" and ("cuda" not in _mmcv_devices or patches.enabled(patches.CUDA))


def largest_step(batch: int, most: int | None) -> int:
    """The largest ``im2col_step`` up to ``most`` that divides the batch, as mmcv's own kernels require."""
    most = min(batch, most or 32)
    return next((step for step in range(most, 0, -1) if batch % step == 0), 1)


class _ByDevice:
    """Replacement of ``ext_module`` in a module of mmcv: dcnzoo's functions or mmcv's, by device."""

    def __init__(self, operator: str, dcnzoos: ModuleType, mmcvs: ModuleType) -> None:
        self.operator, self.dcnzoos, self.mmcvs = operator, dcnzoos, mmcvs

    def __getattr__(self, name: str) -> Callable:
        def call(first: "torch.Tensor", *args: object, **kwargs: object) -> object:
            module = self.dcnzoos if runs_on_dcnzoo(self.operator, first.device) else self.mmcvs
            return getattr(module, name)(first, *args, **kwargs)

        return call


def use_dcnzoo_deform_conv() -> None:
    """Run mmcv's own deformable layers on dcnzoo's operators, if :func:`runs_on_dcnzoo` is true.

    To replace the registry's entries is not enough: several heads import ``DeformConv2d`` and
    ``ModulatedDeformConv2d`` directly, RoI extractors look up the deformable RoI pools in ``mmcv.ops``, and
    DETRs import ``MultiScaleDeformableAttention``. All of these use ``ext_module`` of their module at every
    call, so the patches replace it. On the CPU, a compiled mmcv has no deformable RoI pooling, and a function
    in PyTorch for the attention, which the patch replaces too.
    """
    global _mmcv_devices
    compiled = compiled_extension()
    if compiled is not None:
        with_cuda = compiled.get_compiling_cuda_version() != "not available"
        _mmcv_devices = ("cpu", "cuda") if with_cuda else ("cpu",)
    reason = "mmcv-lite has no kernels, and a compiled mmcv's CPU kernels are slower"
    for name in patches.OPERATORS:
        target, change = f"mmcv.ops.{name}.ext_module", partial(_replace_kernels, name)
        patches.add(patches.Patch(name, target, reason, "mmcv 2.0 to 2.2", change))


def _replace_kernels(operator: str, changes: patches.Changes) -> None:
    extension, compiled = importlib.import_module(f"{__name__}._ext"), compiled_extension()
    # not `import … as`: mmcv.ops has functions with the names of its modules
    module = importlib.import_module(f"mmcv.ops.{operator}")
    kernels = extension if compiled is None else _ByDevice(operator, extension, compiled)
    changes.set(module, "ext_module", kernels)
    name = "multi_scale_deformable_attn_pytorch"
    if hasattr(module, name):
        changes.set(module, name, extension.attention_in_place_of(getattr(module, name)))
