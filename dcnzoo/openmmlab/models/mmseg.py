"""mmsegmentation's ResNets with ``dcn=True``; they replace mmsegmentation's in its registry.

Without ``dcn`` they are equal to mmsegmentation's.
"""

from __future__ import annotations

from mmseg.models.backbones import resnet, resnext
from mmseg.registry import MODELS

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
