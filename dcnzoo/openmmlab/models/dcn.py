"""``DCN`` and ``DCNv2``: deformable convolutions that predict their own offsets."""

from typing import Any

import mmcv.ops
from torch import Tensor, nn

from dcnzoo.compat.mmcv import deform_conv, runs_on_dcnzoo
from dcnzoo.openmmlab.patches.kernels import largest_step


def _for_isinstance(mmcv_class: type[nn.Module]) -> Any:
    """Return a base that makes a layer an instance of mmcv's class, without its constructor and loader.

    mmengine's optimizer constructor recognises deformable layers by these classes.
    """
    methods = {name: getattr(nn.Module, name) for name in ("__init__", "__repr__", "_load_from_state_dict")}
    return type(mmcv_class.__name__, (mmcv_class,), methods)


_Mmcv1: Any = _for_isinstance(mmcv.ops.DeformConv2dPack)
_Mmcv2: Any = _for_isinstance(mmcv.ops.ModulatedDeformConv2dPack)


class DCN(deform_conv.DeformConv2dPack, _Mmcv1):
    """Deformable convolution v1 (Dai et al. 2017): :class:`dcnzoo.compat.mmcv.DeformConv2dPack`, registered.

    A compiled mmcv keeps its own kernels on the devices that :func:`dcnzoo.compat.mmcv.runs_on_dcnzoo` names.
    """

    def _convolve(self, input: Tensor, offset: Any, mask: Any) -> Tensor:
        if runs_on_dcnzoo("deform_conv", input.device):
            return super()._convolve(input, offset, mask)
        output = mmcv.ops.deform_conv2d(  # an autograd function, which takes no keywords
            input.contiguous(),
            offset.contiguous(),
            self.weight,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
            False,  # bias
            largest_step(input.shape[0], self.im2col_step),
        )
        return output if self.bias is None else output + self.bias[:, None, None].to(output.dtype)


class DCNv2(deform_conv.ModulatedDeformConv2dPack, _Mmcv2):
    """Deformable convolution v2 (Zhu et al. 2019): :class:`dcnzoo.compat.mmcv.ModulatedDeformConv2dPack`.

    A compiled mmcv keeps its own kernels as for :class:`DCN`.
    """

    def _convolve(self, input: Tensor, offset: Any, mask: Any) -> Tensor:
        if runs_on_dcnzoo("modulated_deform_conv", input.device):
            return super()._convolve(input, offset, mask)
        return mmcv.ops.modulated_deform_conv2d(
            input.contiguous(),
            offset.contiguous(),
            mask.contiguous(),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
        )
