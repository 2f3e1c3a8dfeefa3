"""Data sets. The generator needs no OpenMMLab; the registered classes do."""

from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, draw_image, make_shapes
from dcnzoo.openmmlab.datasets.coco import CocoDataset
from dcnzoo.openmmlab.datasets.images import pass_over_unreadable_images
from dcnzoo.openmmlab.datasets.shapes import ShapesDataset

__all__ = ["CLASSES", "PALETTE", "CocoDataset", "ShapesDataset", "ShapesSpec", "draw_image", "make_shapes"]

pass_over_unreadable_images()
