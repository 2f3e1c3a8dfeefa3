"""torchvision's ``deform_conv2d`` and ``DeformConv2d`` on dcnzoo's operators.

They have the same arguments in the same order, the same layout of offset and mask, and the same border rule.
torchvision is not required. ``DeformConv2d`` is dcnzoo's own layer, which has torchvision's arguments,
parameters, initialisation and ``repr``.

If torchvision is installed, :func:`accelerate` runs models that call torchvision on dcnzoo's CPU kernels,
without changes to their code. :func:`restore` undoes this.
"""

import importlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.compat import patches, provide, torchvision_ops
from dcnzoo.layers import DeformConv2d
from dcnzoo.ops import _library

__all__ = ["DeformConv2d", "accelerate", "accelerated", "deform_conv2d", "restore"]


def deform_conv2d(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, G·2·kH·kW, oH, oW], (y, x) pairs, in input pixels
    weight: Tensor,  # [O, C / groups, kH, kW]
    bias: Tensor | None = None,  # [O]
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,  # [N, M·kH·kW, oH, oW]
) -> Tensor:  # [N, O, oH, oW]
    """:func:`dcnzoo.ops.deform_conv2d` with torchvision's arguments.

    ``groups`` follows from the shapes: the channels of ``input`` divided by those of ``weight``. As in
    torchvision, ``stride``, ``padding`` and ``dilation`` may be single integers.

    Raises:
        RuntimeError: a shape, dtype, device or value is invalid.
    """
    groups = 1  # the operator reports a wrong number of dimensions
    if input.dim() == 4 and weight.dim() == 4:
        channels, per_group = input.shape[1], weight.shape[1]
        if per_group == 0 or channels % per_group != 0:
            raise RuntimeError(
                f"deform_conv2d: weight: expected a number of input channels that divides the {channels} "
                f"of input, got {per_group} (torchvision's order is input, offset, weight)"
            )
        groups = channels // per_group
    return ops.deform_conv2d(input, weight, offset, mask, bias, stride, padding, dilation, groups)


def accelerate() -> None:
    """Runs torchvision's own ``deform_conv2d``, ``DeformConv2d`` and ``roi_align`` on dcnzoo's CPU kernels.

    It replaces the CPU kernels of ``torchvision::deform_conv2d`` and ``torchvision::roi_align``, forward and
    backward, and with them the checks of the arguments. Everything else stays torchvision's: functions,
    layers, autograd, export and CUDA kernels. Existing models use the new kernels too, also those that
    ``torch.compile`` has compiled. A second call has no effect. The patch is called ``torchvision`` in
    :mod:`dcnzoo.compat.patches`.

    Under autocast on the CPU, ``deform_conv2d`` computes in the dtype of ``input``, where torchvision's own
    kernel raises an error. Second derivatives raise an error, as in torchvision.

    Call this before the first import of torchvision: it also defines operators and CUDA kernels that
    torchvision's library lacks (:func:`dcnzoo.compat.provide`).

    Raises:
        ImportError: torchvision or dcnzoo's compiled operators are missing.
    """
    provide("torchvision")
    importlib.import_module("torchvision")
    if not _library.has_ops():
        raise ImportError(f"accelerate: {_library.problems['cpu']}")
    if ("deform_conv2d", "CPU") not in torchvision_ops.registered:
        patches.switch_on(_PATCH)


def restore() -> None:
    """Restores the CPU kernels of torchvision's operators, also for existing models."""
    patches.switch_off(_PATCH)


def accelerated() -> AbstractContextManager[None]:
    """A context in which :func:`accelerate` applies."""
    return patches.switched_on(_PATCH, accelerate)


def _override(changes: patches.Changes) -> None:
    library = changes.enter_context(torch.library._scoped_library("torchvision", "IMPL"))
    for name in ("deform_conv2d", "_deform_conv2d_backward", "roi_align", "_roi_align_backward"):
        library.impl(name, getattr(torchvision_ops, name), "CPU")


_PATCH = patches.Patch(
    "torchvision",
    "torchvision::deform_conv2d, torchvision::roi_align: CPU kernels",
    "dcnzoo's are faster; dcnzoo.compat.torchvision.accelerate() was called",
    "all",
    _override,
)
