"""Data sets. The generator needs no OpenMMLab; the registered class, ``ShapesDataset``, does."""

from dcnzoo.datasets.shapes import CLASSES, PALETTE, ShapesSpec, draw_image, make_shapes
from dcnzoo.datasets.shapes_dataset import ShapesDataset

__all__ = ["CLASSES", "PALETTE", "ShapesDataset", "ShapesSpec", "draw_image", "make_shapes"]
