"""Data sets. The generator of shapes does not need OpenMMLab; the registered classes do."""

from dcnzoo.compat import patches
from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, draw_image, make_shapes
from dcnzoo.openmmlab.datasets.coco import CocoDataset, ShapesDataset
from dcnzoo.openmmlab.patches import SKIP_UNREADABLE_IMAGES

__all__ = ["CLASSES", "PALETTE", "CocoDataset", "ShapesDataset", "ShapesSpec", "draw_image", "make_shapes"]

patches.add(SKIP_UNREADABLE_IMAGES)
