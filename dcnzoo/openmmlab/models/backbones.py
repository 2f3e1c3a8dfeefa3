"""MMDetection's ResNet family and HRNet with ``dcn=True``; they replace MMDetection's in the registry.

Without ``dcn``, layers and parameter names are identical to MMDetection's.
"""

from __future__ import annotations

from mmdet.models.backbones import hrnet, regnet, res2net, resnest, resnet, resnext, trident_resnet
from mmdet.registry import MODELS
from torch import nn

from dcnzoo.compat import patches
from dcnzoo.openmmlab.models.dcn import check_stages, deformable_like, parse_dcn


class BasicBlock(resnet.BasicBlock):
    """The block of ResNet-18 and -34 with a deformable second 3×3 convolution."""

    def __init__(self, inplanes: int, planes: int, *args, dcn: dict, **kwargs) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        self.conv2 = deformable_like(self.conv2, dcn)


class _WithDCN:
    """Extends the ``dcn`` arguments of MMDetection's ResNets.

    - ``dcn``: True or ``'v2'`` (DCNv2), ``'v1'`` (DCN), ``'v3'``, ``'v4'`` or MMDetection's dict; see
      :func:`dcnzoo.openmmlab.models.dcn.parse_dcn`.
    - ``stage_with_dcn``: by default all stages but the first, c3–c5.
    - ``BasicBlock`` (ResNet-18 and -34) is supported.
    """

    def __init__(self, *args, dcn=None, stage_with_dcn=None, **kwargs) -> None:
        owner = type(self).__name__
        dcn = parse_dcn(dcn, owner)
        stages = len(kwargs.get("strides", (1, 2, 2, 2)))
        if stage_with_dcn is None:
            stage_with_dcn = (False, *[dcn is not None] * (stages - 1))
        stage_with_dcn = check_stages(owner, stage_with_dcn, stages)
        super().__init__(*args, dcn=dcn, stage_with_dcn=stage_with_dcn, **kwargs)

    def make_res_layer(self, block: type[nn.Module], dcn: dict | None = None, **kwargs):
        if dcn is not None and block is resnet.BasicBlock:
            block = BasicBlock
        return super().make_res_layer(block=block, dcn=dcn, **kwargs)


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class ResNet(_WithDCN, resnet.ResNet):
    """MMDetection's ResNet; ``depth`` can also be 14 or 26, with one or two Bottlenecks per stage."""

    arch_settings = {
        14: (resnet.Bottleneck, (1, 1, 1, 1)),
        26: (resnet.Bottleneck, (2, 2, 2, 2)),
        **resnet.ResNet.arch_settings,
    }


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class ResNetV1d(_WithDCN, resnet.ResNetV1d):
    arch_settings = ResNet.arch_settings


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class ResNeXt(_WithDCN, resnext.ResNeXt):
    pass


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class Res2Net(_WithDCN, res2net.Res2Net):
    pass


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class ResNeSt(_WithDCN, resnest.ResNeSt):
    pass


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class RegNet(_WithDCN, regnet.RegNet):
    pass


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class TridentResNet(_WithDCN, trident_resnet.TridentResNet):
    """MMDetection's TridentResNet; ``dcn`` applies to c3 by default.

    The 3×3 convolutions of its last stage are trident convolutions (one weight, three dilations), which
    cannot be deformable.

    Raises:
        ValueError: ``stage_with_dcn`` is True for the last stage.
    """

    def __init__(self, *args, dcn=None, stage_with_dcn=None, **kwargs) -> None:
        if stage_with_dcn is None:
            stage_with_dcn = (False, dcn is not None, False)
        if stage_with_dcn[-1]:
            raise ValueError(
                "TridentResNet: stage_with_dcn: expected False for the last stage, which has "
                f"trident convolutions, got {stage_with_dcn}"
            )
        super().__init__(*args, dcn=dcn, stage_with_dcn=stage_with_dcn, **kwargs)


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class HRNet(hrnet.HRNet):
    """MMDetection's HRNet; ``dcn`` applies to all branches of the stages 2 to 4.

    ``stage_with_dcn`` selects other stages: it refers to HRNet's stages 1 to 4, not to c2 to c5.
    """

    def __init__(self, *args, dcn=None, stage_with_dcn=(False, True, True, True), **kwargs) -> None:
        owner = type(self).__name__
        dcn = parse_dcn(dcn, owner)
        stage_with_dcn = check_stages(owner, stage_with_dcn, 4)
        super().__init__(*args, **kwargs)
        stages = (self.layer1, self.stage2, self.stage3, self.stage4)
        for stage, deformable in zip(stages, stage_with_dcn, strict=True):
            if dcn is None or not deformable:
                continue
            for block in stage.modules():
                if isinstance(block, (resnet.BasicBlock, resnet.Bottleneck)):
                    block.conv2 = deformable_like(block.conv2, dcn)
