"""Data for object detection: conversion to COCO, checks, splits, generated data. No torch, no OpenMMLab.

:func:`read` finds the format of a folder and returns a :class:`dataset.Dataset`. A reader for each format
(``yolo``, ``coco``, ``labelme``, ``voc``) finds files and pictures in a :class:`tree.Tree`, and passes each
object to a :class:`builder.Builder`, which checks and clips it. ``check`` judges a COCO file as trainings
and tests read it. ``shapes`` generates data, ``download`` fetches some.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcnzoo.data.reading import read

__all__ = ["read"]


def __getattr__(name: str) -> object:
    if name in __all__:  # imported on access, because generated data need neither pycocotools nor PyYAML
        return import_module("dcnzoo.data.reading").read
    raise AttributeError(f"module 'dcnzoo.data' has no attribute {name!r}")
