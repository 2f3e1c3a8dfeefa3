"""``DCN`` and ``DCNv2``: deformable convolutions that predict their own offsets."""

from typing import Any

import mmcv.ops
from torch import Tensor, nn

from dcnzoo.compat.mmcv import deform_conv
from dcnzoo.openmmlab.patches.devices import largest_step, runs_on_dcnzoo
from dcnzoo.ops import deform_conv2d


def _for_isinstance(mmcv_class: type[nn.Module]) -> Any:
    """Return a base that makes a layer an instance of mmcv's class, without its constructor and loader.

    mmengine's optimizer constructor recognises deformable layers by these classes.
    """
    methods = {name: getattr(nn.Module, name) for name in ("__init__", "__repr__", "_load_from_state_dict")}
    return type(mmcv_class.__name__, (mmcv_class,), methods)


_Mmcv1: Any = _for_isinstance(mmcv.ops.DeformConv2dPack)
_Mmcv2: Any = _for_isinstance(mmcv.ops.ModulatedDeformConv2dPack)


# The layers call these functions with the arguments of dcnzoo.ops.deform_conv2d.
def _deform_conv(input: Tensor, weight: Tensor, offset: Any, mask: Any, bias: Any, *geometry: Any) -> Tensor:
    if runs_on_dcnzoo("deform_conv", input.device):
        return deform_conv2d(input, weight, offset, mask, bias, *geometry)
    *numbers, im2col_step = geometry  # stride, padding, dilation, groups
    output = mmcv.ops.deform_conv2d(  # an autograd function, which takes no keywords
        input.contiguous(),
        offset.contiguous(),
        weight,
        *numbers,
        offset.shape[1] // (2 * weight[0, 0].numel()),  # deform_groups
        False,  # bias
        largest_step(input.shape[0], im2col_step),
    )
    return output if bias is None else output + bias[:, None, None].to(output.dtype)


def _modulated_deform_conv(
    input: Tensor, weight: Tensor, offset: Any, mask: Any, bias: Any, *geometry: Any
) -> Tensor:
    if runs_on_dcnzoo("modulated_deform_conv", input.device):
        return deform_conv2d(input, weight, offset, mask, bias, *geometry)
    deform_groups = mask.shape[1] // weight[0, 0].numel()
    fields = (offset.contiguous(), mask.contiguous())
    return mmcv.ops.modulated_deform_conv2d(
        input.contiguous(), *fields, weight, bias, *geometry[:4], deform_groups
    )


class DCN(deform_conv.DeformConv2dPack, _Mmcv1):
    """Deformable convolution v1 (Dai et al. 2017): :class:`dcnzoo.compat.mmcv.DeformConv2dPack`, registered.

    A compiled mmcv keeps its own kernels on the devices that :mod:`dcnzoo.openmmlab.patches.devices` names.
    """

    function = staticmethod(_deform_conv)  # type: ignore[assignment]  # arguments by position


class DCNv2(deform_conv.ModulatedDeformConv2dPack, _Mmcv2):
    """Deformable convolution v2 (Zhu et al. 2019): :class:`dcnzoo.compat.mmcv.ModulatedDeformConv2dPack`.

    A compiled mmcv keeps its own kernels as for :class:`DCN`.
    """

    function = staticmethod(_modulated_deform_conv)  # type: ignore[assignment]  # arguments by position
