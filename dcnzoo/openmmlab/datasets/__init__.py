"""Data sets; the import registers them. The generator of shapes does not need OpenMMLab."""

from mmdet.registry import DATASETS, METRICS

from dcnzoo.compat import patches
from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, draw_image, make_shapes
from dcnzoo.openmmlab.datasets.coco import CocoDataset, CocoMetric, ShapesDataset
from dcnzoo.openmmlab.datasets.images import ERRORS_NAME_PICTURES
from dcnzoo.openmmlab.patches.kernels import registered

__all__ = ["CLASSES", "PALETTE", "CocoDataset", "ShapesDataset", "ShapesSpec", "draw_image", "make_shapes"]

patches.add(
    registered(DATASETS, CocoDataset, "checks the annotation file"),
    registered(METRICS, CocoMetric, "checks the annotation file"),
    ERRORS_NAME_PICTURES,
)
