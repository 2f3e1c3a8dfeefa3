"""Data for object detection: conversion to COCO, checks, splits, generated data. No torch, no OpenMMLab."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcnzoo.data.dataset import Dataset
    from dcnzoo.data.reading import read

__all__ = ["Dataset", "read"]


def __getattr__(name: str) -> object:
    # imported on access, because generated data need neither pycocotools nor PyYAML
    if name in __all__:
        return getattr(import_module(f"dcnzoo.data.{'reading' if name == 'read' else 'dataset'}"), name)
    raise AttributeError(f"module 'dcnzoo.data' has no attribute {name!r}")
