"""dcnzoo in OpenMMLab's registries. To use it, import this package in a config::

    custom_imports = dict(imports=['dcnzoo.models'])

- ``DCN`` and ``DCNv2`` in a config are dcnzoo's classes. Heads that import mmcv's deformable convolutions
  directly run on dcnzoo's operators: with mmcv-lite on every device, with a compiled mmcv on the CPU.
- ``DeformRoIPool`` and its packs are registered. RoI extractors, which use ``mmcv.ops``, get mmcv's classes
  of the same names, which run on dcnzoo's operator.
- ``MultiScaleDeformableAttention`` in a config and in MMDetection's DETRs is dcnzoo's class. mmcv's class,
  which other programs import, runs on dcnzoo's operator.
- ``DCNv3`` and ``DCNv4`` are registered, with the backbones that use them, ``InternImage`` and
  ``FlashInternImage``. ``ViTAdapter`` makes a plain vision transformer of timm a backbone. All support
  layer-wise learning rate decay.
- ResNet-family backbones (also of mmpose, mmpretrain and mmsegmentation), HRNet and (PA)FPN accept
  ``dcn=True``, and any module accepts ``to_deformable=dict(where=…)``
  (:mod:`dcnzoo.openmmlab.config.deformable`).
- ``OffsetStatisticsHook`` for ``custom_hooks`` records the offsets of these layers during training.
- Bugs of OpenMMLab's packages on current PyTorch are fixed (:mod:`dcnzoo.openmmlab.patches.table`).

Each replacement can be undone or switched off: :mod:`dcnzoo.compat.patches`.

Requires mmengine and mmcv or mmcv-lite. Without mmdet, the parts that need it are skipped. The other
packages are not imported.
"""

from dcnzoo.layers import DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from dcnzoo.openmmlab.models.backbones import FlashInternImage, InternImage, ViTAdapter
from dcnzoo.openmmlab.models.dcn import DCN, DCNv2
from dcnzoo.openmmlab.models.deform_attn import DCNv3, DCNv3Conv, DCNv4, DCNv4Conv
from dcnzoo.openmmlab.models.layer_decay import CustomLayerDecayOptimizerConstructor
from dcnzoo.openmmlab.models.ms_deform_attn import MultiScaleDeformableAttention

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
    "ViTAdapter",
]
