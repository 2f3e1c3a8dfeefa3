"""MMDetection's ResNet family with ``dcn=True``, in its place in the registry.

Without ``dcn`` they are MMDetection's, layer by layer and key by key.
"""

from __future__ import annotations

from mmcv.cnn import build_conv_layer
from mmdet.models.backbones import regnet, res2net, resnest, resnet, resnext
from mmdet.registry import MODELS
from torch import nn

from dcnzoo.models.dcn import parse_dcn


class BasicBlock(resnet.BasicBlock):
    """The block of ResNet-18 and -34 with its second 3×3 convolution deformable."""

    def __init__(self, inplanes: int, planes: int, *args, dcn: dict, **kwargs) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        layer = {key: value for key, value in dcn.items() if key != "fallback_on_stride"}
        self.conv2 = build_conv_layer(layer, planes, planes, 3, padding=1, bias=False)


class _WithDCN:
    """Adds to a ResNet what MMDetection's lacks.

    - ``dcn``: True or ``'v2'`` (DCNv2), ``'v1'`` (DCN), ``'v3'``, ``'v4'`` or MMDetection's dict; see
      :func:`dcnzoo.models.dcn.parse_dcn`.
    - ``stage_with_dcn``: by default all stages but the first, c3–c5.
    - ``BasicBlock`` takes it too.
    """

    def __init__(self, *args, dcn=None, stage_with_dcn=None, **kwargs) -> None:
        dcn = parse_dcn(dcn, owner=type(self).__name__)
        if stage_with_dcn is None:
            stages = len(kwargs.get("strides", (1, 2, 2, 2)))
            stage_with_dcn = (False, *[dcn is not None] * (stages - 1))
        super().__init__(*args, dcn=dcn, stage_with_dcn=stage_with_dcn, **kwargs)

    def make_res_layer(self, block: type[nn.Module], dcn: dict | None = None, **kwargs):
        if dcn is not None and block is resnet.BasicBlock:
            block = BasicBlock
        return super().make_res_layer(block=block, dcn=dcn, **kwargs)


@MODELS.register_module(force=True)
class ResNet(_WithDCN, resnet.ResNet):
    """MMDetection's ResNet; ``depth`` can also be 14 or 26: Bottlenecks, one or two to a stage."""

    arch_settings = {
        14: (resnet.Bottleneck, (1, 1, 1, 1)),
        26: (resnet.Bottleneck, (2, 2, 2, 2)),
        **resnet.ResNet.arch_settings,
    }


@MODELS.register_module(force=True)
class ResNetV1d(_WithDCN, resnet.ResNetV1d):
    arch_settings = ResNet.arch_settings


@MODELS.register_module(force=True)
class ResNeXt(_WithDCN, resnext.ResNeXt):
    pass


@MODELS.register_module(force=True)
class Res2Net(_WithDCN, res2net.Res2Net):
    pass


@MODELS.register_module(force=True)
class ResNeSt(_WithDCN, resnest.ResNeSt):
    pass


@MODELS.register_module(force=True)
class RegNet(_WithDCN, regnet.RegNet):
    pass
