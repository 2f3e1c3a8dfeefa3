"""mmpretrain's ResNets with ``dcn=True``; they replace mmpretrain's in its registry.

Without ``dcn`` they are equal to mmpretrain's.
"""

from __future__ import annotations

from mmpretrain.models.backbones import resnet, resnext, seresnet, seresnext
from mmpretrain.registry import MODELS

from dcnzoo.compat import patches
from dcnzoo.openmmlab.models.dcn import WithDCN


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class ResNet(WithDCN, resnet.ResNet):
    pass


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class ResNetV1c(WithDCN, resnet.ResNetV1c):
    pass


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class ResNetV1d(WithDCN, resnet.ResNetV1d):
    pass


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class ResNeXt(WithDCN, resnext.ResNeXt):
    pass


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class SEResNet(WithDCN, seresnet.SEResNet):
    pass


@patches.replace(MODELS, "adds the options dcn and stage_with_dcn")
class SEResNeXt(WithDCN, seresnext.SEResNeXt):
    pass
