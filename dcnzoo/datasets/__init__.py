"""Data sets. The generator needs no OpenMMLab; the registered classes do."""

from dcnzoo.datasets.coco import CocoDataset
from dcnzoo.datasets.images import pass_over_unreadable_images
from dcnzoo.datasets.shapes import CLASSES, PALETTE, ShapesSpec, draw_image, make_shapes
from dcnzoo.datasets.shapes_dataset import ShapesDataset

__all__ = ["CLASSES", "PALETTE", "CocoDataset", "ShapesDataset", "ShapesSpec", "draw_image", "make_shapes"]

pass_over_unreadable_images()
