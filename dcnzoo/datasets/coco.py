"""MMDetection's COCO data set, which says what is wrong with an annotation file.

MMDetection passes over what it cannot use: boxes that are turned inside out, categories that a config
does not name, whole files of which nothing is left. Training then runs, on less or on nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from mmdet.datasets import coco
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from dcnzoo.engine.cli import UserError

# without which MMDetection stops at a KeyError
_IMAGE_KEYS = {"id", "file_name", "height", "width"}
_ANNOTATION_KEYS = {"id", "image_id", "category_id", "bbox", "area"}


class CheckedCOCO(COCO):
    """MMDetection's ``COCO``.

    Warns of annotations that MMDetection passes over.

    Raises:
        UserError: the file is not there, not a COCO file, has no images, something in it without what
            MMDetection reads, a box that is none, or a category that is none of its own; or it has not
            got the categories asked for, in the order asked for.
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
        for image in self.dataset["images"]:
            if missing := _IMAGE_KEYS.difference(image):
                expected = ", ".join(sorted(_IMAGE_KEYS))
                raise UserError(
                    f"{self.file}: image {image.get('id')}: expected {expected}, "
                    f"missing {', '.join(sorted(missing))}"
                )
        images = {image["id"]: image for image in self.dataset["images"]}
        categories = {category["id"] for category in self.dataset["categories"]}
        annotations = self.dataset.get("annotations", ())
        passed_over: dict[str, list] = {}
        for annotation in annotations:
            self._check(annotation, categories)
            if reason := _why_passed_over(annotation, images.get(annotation["image_id"])):
                passed_over.setdefault(reason, []).append(annotation["id"])
        for reason, ids in passed_over.items():
            print_log(
                f"{self.file}: {len(ids)} of {len(annotations)} annotations are passed over, {reason}: "
                f"ids {_few(ids)}",
                logger="current",
                level=logging.WARNING,
            )
        super().createIndex()

    def _check(self, annotation: dict, categories: Collection[int]) -> None:
        name = f"{self.file}: annotation {annotation.get('id')} of image {annotation.get('image_id')}"
        box = annotation.get("bbox", ())
        if len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
            raise UserError(
                f"{name}: bbox: expected [x, y, width, height], width and height ≥ 0, got {list(box)}"
            )
        if missing := _ANNOTATION_KEYS.difference(annotation):
            expected = ", ".join(sorted(_ANNOTATION_KEYS))
            raise UserError(f"{name}: expected {expected}, missing {', '.join(sorted(missing))}")
        if (category := annotation["category_id"]) not in categories:
            raise UserError(
                f"{name}: category_id: expected the id of one of its {len(categories)} categories "
                f"({_few(sorted(categories))}), got {category}"
            )

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
        if any(getattr(transform, "with_mask", False) for transform in self.pipeline.transforms):
            self._ignore_without_mask(images)
        first = images[0]["img_path"]
        if "://" not in first and self.backend_args is None and not Path(first).is_file():
            raise UserError(
                f"data_prefix: expected the images of {self.ann_file}, the first at {first}, found none there"
            )
        return images

    def _ignore_without_mask(self, images: list[dict]) -> None:
        """Neither learnt nor held against the detector, as MMDetection has it of polygons without an area.

        (Without any ``segmentation`` it stops at ``KeyError: 'mask'``, when the image comes up.)
        """
        instances = [instance for image in images for instance in image["instances"]]
        without = [instance for instance in instances if "mask" not in instance]
        for instance in without:
            instance.update(mask=[], ignore_flag=1)
        if without:
            print_log(
                f"{self.ann_file}: {len(without)} of {len(instances)} objects are ignored, without "
                "a segmentation",
                logger="current",
                level=logging.WARNING,
            )

    def filter_data(self) -> list[dict]:
        left = super().filter_data()
        total = len(self.data_list)
        if 0 < len(left) < total:
            print_log(
                f"{self.ann_file}: {total - len(left)} of {total} images are left out: "
                f"without an annotation or too small (filter_cfg={dict(self.filter_cfg)})",
                logger="current",
            )
        if not left:
            raise UserError(
                f"{self.ann_file}: expected at least 1 image to train on, got 0 of {total}: "
                f"the others are without an annotation or too small (filter_cfg={dict(self.filter_cfg)})"
            )
        return left


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _why_passed_over(annotation: dict, image: dict | None) -> str | None:
    """Why MMDetection does not use an annotation, other than because it is told so."""
    if image is None:
        return "of images that are not in the file"
    if annotation.get("ignore", False):
        return None
    x, y, width, height = annotation["bbox"]
    if min(x + width, image["width"]) <= max(x, 0) or min(y + height, image["height"]) <= max(y, 0):
        return "with a box that has no area in its image"
    if width < 1 or height < 1:
        return "with a box narrower or lower than a pixel"
    if annotation["area"] <= 0:
        return "without an area"
    return None


def _few(names: Sequence[object], shown: int = 5) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + rest
