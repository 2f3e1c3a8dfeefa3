"""Data for object detection: conversion to COCO, checks, splits, generated data. No torch, no OpenMMLab."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcnzoo.data.reading import read

__all__ = ["read"]


def __getattr__(name: str) -> object:
    if name == "read":  # imported on access, because generated data need neither pycocotools nor PyYAML
        from dcnzoo.data.reading import read

        return read
    raise AttributeError(f"module 'dcnzoo.data' has no attribute {name!r}")
