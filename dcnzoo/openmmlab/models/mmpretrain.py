"""mmpretrain's ResNets with ``dcn=True``, in their place. Without it they are mmpretrain's."""

from __future__ import annotations

from mmpretrain.models.backbones import resnet, resnext, seresnet, seresnext
from mmpretrain.registry import MODELS

from dcnzoo.compat import patches
from dcnzoo.openmmlab.models.dcn import check_stages, deformable_like, parse_dcn


class _WithDCN:
    """Makes the 3×3 convolution of blocks deformable.

    - ``dcn``: True or ``'v2'`` (DCNv2), ``'v1'`` (DCN), ``'v3'``, ``'v4'`` or a layer's dict; see
      :func:`dcnzoo.openmmlab.models.dcn.parse_dcn`.
    - ``stage_with_dcn``: by default all stages but the first, c3–c5.
    """

    def __init__(self, *args, dcn=None, stage_with_dcn=None, **kwargs) -> None:
        owner = type(self).__name__
        dcn = parse_dcn(dcn, owner)
        super().__init__(*args, **kwargs)
        if stage_with_dcn is None:
            stage_with_dcn = (False, *[True] * (len(self.res_layers) - 1))
        stage_with_dcn = check_stages(owner, stage_with_dcn, len(self.res_layers))
        for name, deformable in zip(self.res_layers, stage_with_dcn, strict=True):
            for block in getattr(self, name) if dcn and deformable else ():
                block.conv2 = deformable_like(block.conv2, dcn)
        self._freeze_stages()  # again: what is new in them, too


@patches.replace(MODELS, "takes dcn and stage_with_dcn")
class ResNet(_WithDCN, resnet.ResNet):
    pass


@patches.replace(MODELS, "takes dcn and stage_with_dcn")
class ResNetV1c(_WithDCN, resnet.ResNetV1c):
    pass


@patches.replace(MODELS, "takes dcn and stage_with_dcn")
class ResNetV1d(_WithDCN, resnet.ResNetV1d):
    pass


@patches.replace(MODELS, "takes dcn and stage_with_dcn")
class ResNeXt(_WithDCN, resnext.ResNeXt):
    pass


@patches.replace(MODELS, "takes dcn and stage_with_dcn")
class SEResNet(_WithDCN, seresnet.SEResNet):
    pass


@patches.replace(MODELS, "takes dcn and stage_with_dcn")
class SEResNeXt(_WithDCN, seresnext.SEResNeXt):
    pass
