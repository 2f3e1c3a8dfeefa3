"""Object detection data: conversion to COCO, checks, splits, generated data. No torch, no OpenMMLab."""

from dcnzoo.data.shapes import CLASSES, PALETTE, ShapesSpec, draw_image, make_shapes

__all__ = ["CLASSES", "PALETTE", "ShapesSpec", "draw_image", "make_shapes"]
