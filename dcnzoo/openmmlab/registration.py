"""Registration of dcnzoo with OpenMMLab's packages."""

import warnings
from functools import cache
from importlib import import_module

from mmengine.registry import MODELS

from dcnzoo.compat import patches
from dcnzoo.openmmlab.patches.kernels import kernels, registered
from dcnzoo.openmmlab.patches.table import TABLE, installed
from dcnzoo.utils import torchvision_schemas

# modules of MMDetection that use the attention class that they import, not the registered one
DETRS = (
    "mmdet.models.layers.transformer.deformable_detr_layers",
    "mmdet.models.layers.transformer.grounding_dino_layers",
)


@cache
def setup() -> None:
    """Register dcnzoo's classes with OpenMMLab and apply the patches; ``import dcnzoo.models`` calls it.

    Later calls do nothing. Decorators register the classes that have new names. Classes that replace mmcv's
    are registered here, after mmcv's own.
    """
    # mmengine and mmcv import pkg_resources; setuptools 80, pinned for them, warns on every import
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    torchvision_schemas.define_missing()
    import_module("mmcv.ops")  # registers the classes that are replaced
    patches.add(*kernels())  # mmcv's own layers run on dcnzoo's kernels
    models = import_module("dcnzoo.openmmlab.models")
    import_module("dcnzoo.openmmlab.hooks.offset_statistics")
    layer = "dcnzoo's operator; any batch, offset_limit, statistics of offsets"
    detrs = DETRS if installed("mmdet") else ()
    patches.add(
        registered(MODELS, models.DCN, layer),
        registered(MODELS, models.DCNv2, layer),
        registered(MODELS, models.MultiScaleDeformableAttention, layer, detrs),
    )
    patches.add(*TABLE, complete=True)  # from here on, the names in DCNZOO_PATCHES are checked
