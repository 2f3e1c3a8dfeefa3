"""dcnzoo in OpenMMLab's registries. Importing this package is the whole integration::

    custom_imports = dict(imports=['dcnzoo.models'])

- ``DCN`` and ``DCNv2`` are dcnzoo's wherever a config names them, and heads that import mmcv's
  deformable convolutions directly run on dcnzoo's operators: with mmcv-lite everywhere, with a compiled mmcv
  on the CPU.
- ``DeformRoIPool`` and its packs are in the registry; RoI extractors, which look in ``mmcv.ops``, get mmcv's
  of the same names, on dcnzoo's operator.
- ``MultiScaleDeformableAttention`` of a config is dcnzoo's; mmcv's, which DETRs import directly, runs on
  dcnzoo's operator.
- ``DCNv3`` and ``DCNv4``, and the backbones built on them, ``InternImage`` and ``FlashInternImage``, with
  their layer-wise learning rate.
- ResNet-family backbones, HRNet and (PA)FPN take ``dcn=True`` (modules ``backbones`` and ``necks``).
- ``OffsetStatisticsHook`` for ``custom_hooks``: where these layers look, over the course of training.
- Any module takes ``to_deformable=dict(where=…)``.
- Faults of the stack on today's PyTorch are fixed (:mod:`dcnzoo.openmmlab.patches`).

- The ResNets of mmpose, mmpretrain and mmsegmentation take ``dcn=True`` too, once their package is imported.

Each replacement can be undone and switched off: :mod:`dcnzoo.compat.patches`.

Needs mmengine and mmcv or mmcv-lite. Without mmdet, what builds on it is left out. The other packages are not
imported.
"""

from importlib import import_module
from importlib.util import find_spec

import mmcv.ops  # noqa: F401  registers DCN and DCNv2, which must happen before ours replace them

from dcnzoo.compat import after_import
from dcnzoo.compat.mmcv import use_dcnzoo_deform_conv
from dcnzoo.openmmlab.hooks.offset_statistics import OffsetStatisticsHook  # noqa: F401  registered, for configs
from dcnzoo.openmmlab.models.dcn import DCN, DCNv2
from dcnzoo.openmmlab.models.deform_attn import DCNv3, DCNv3Conv, DCNv4, DCNv4Conv
from dcnzoo.openmmlab.models.deform_roi_pool import (
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
)
from dcnzoo.openmmlab.models.intern_image import FlashInternImage, InternImage
from dcnzoo.openmmlab.models.layer_decay import CustomLayerDecayOptimizerConstructor
from dcnzoo.openmmlab.models.ms_deform_attn import MultiScaleDeformableAttention
from dcnzoo.openmmlab.patches import apply as apply_patches

__all__ = [
    "DCN",
    "CustomLayerDecayOptimizerConstructor",
    "DCNv2",
    "DCNv3",
    "DCNv3Conv",
    "DCNv4",
    "DCNv4Conv",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "FlashInternImage",
    "InternImage",
    "ModulatedDeformRoIPoolPack",
    "MultiScaleDeformableAttention",
]

use_dcnzoo_deform_conv()

if find_spec("mmdet"):
    from dcnzoo.openmmlab.models.backbones import (
        HRNet,
        RegNet,
        Res2Net,
        ResNeSt,
        ResNet,
        ResNetV1d,
        ResNeXt,
        TridentResNet,
    )
    from dcnzoo.openmmlab.models.necks import FPN, PAFPN

    __all__ += ["FPN", "PAFPN"]
    __all__ += ["HRNet", "RegNet", "Res2Net", "ResNeSt", "ResNeXt", "ResNet", "ResNetV1d", "TridentResNet"]

for package in ("mmpose", "mmpretrain", "mmseg"):
    after_import.call(
        f"{package}.models.backbones",
        lambda backbones: import_module(f"dcnzoo.openmmlab.models.{backbones.__name__.partition('.')[0]}"),
    )

apply_patches()
