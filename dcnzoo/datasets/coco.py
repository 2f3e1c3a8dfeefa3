"""MMDetection's COCO data set, which says what is wrong with an annotation file.

MMDetection passes over what it cannot use: boxes that are turned inside out, categories that a config
does not name, whole files of which nothing is left. Training then runs, on less or on nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mmdet.datasets import coco
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from dcnzoo.engine.cli import UserError


class CheckedCOCO(COCO):
    """MMDetection's ``COCO``.

    Raises:
        UserError: the file is not there, not a COCO file, has no images, or a box that is none; or
            it has not got the categories asked for, in the order asked for.
    """

    def __init__(self, annotation_file: str) -> None:
        self.file = annotation_file
        if not Path(annotation_file).is_file():
            raise UserError(f"ann_file: expected a file, found none at {annotation_file}")
        try:
            super().__init__(annotation_file)
        except (ValueError, AssertionError) as error:  # no JSON; JSON, but no object
            raise UserError(
                f"{self.file}: expected a COCO file (JSON): {error or 'it has no keys'}"
            ) from error

    def createIndex(self) -> None:
        for key in ("images", "categories"):
            number = len(self.dataset.get(key, ()))
            if number == 0:
                raise UserError(f"{self.file}: {key}: expected at least 1, got {number}")
        for annotation in self.dataset.get("annotations", ()):
            box = annotation.get("bbox", ())
            if len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
                raise UserError(
                    f"{self.file}: annotation {annotation.get('id')} of image {annotation.get('image_id')}: "
                    f"bbox: expected [x, y, width, height], width and height ≥ 0, got {list(box)}"
                )
        super().createIndex()

    def get_cat_ids(self, cat_names: Sequence[str] = (), *args: object, **kwargs: object) -> list[int]:
        there = [category["name"] for category in self.dataset["categories"]]
        missing = [name for name in cat_names if name not in there]
        if missing:
            raise UserError(
                f"{self.file}: categories: expected all {len(cat_names)} "
                f"classes of metainfo, missing {_few(missing)}, got {_few(there)}"
            )
        # a label is a category's place in the file; its name is the class in that place
        in_file = [name for name in there if name in cat_names]
        if in_file != list(cat_names) and cat_names:
            raise UserError(
                f"{self.file}: categories: expected the order of metainfo's classes, {_few(cat_names)}, "
                f"got {_few(in_file)}"
            )
        return super().get_cat_ids(cat_names, *args, **kwargs)


@DATASETS.register_module(force=True)
class CocoDataset(coco.CocoDataset):
    """MMDetection's, in its place in the registry.

    Raises:
        UserError: see :class:`CheckedCOCO`; the first image is not where it is looked for; the
            filter leaves no image.
    """

    COCOAPI = CheckedCOCO

    def load_data_list(self) -> list[dict]:
        images = super().load_data_list()
        first = images[0]["img_path"]
        if "://" not in first and self.backend_args is None and not Path(first).is_file():
            raise UserError(
                f"data_prefix: expected the images of {self.ann_file}, the first at {first}, found none there"
            )
        return images

    def filter_data(self) -> list[dict]:
        left = super().filter_data()
        if not left:
            raise UserError(
                f"{self.ann_file}: expected at least 1 image to train on, got 0 of {len(self.data_list)}: "
                f"the others are without an annotation or too small (filter_cfg={dict(self.filter_cfg)})"
            )
        return left


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _few(names: Sequence[str], shown: int = 5) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
