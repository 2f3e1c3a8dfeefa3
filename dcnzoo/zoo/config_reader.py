"""Answer questions about a detector's config: its data sets, pictures and classes.

No function here changes a config. :mod:`dcnzoo.zoo.config_writer` computes settings from the answers.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

from mmengine.config import Config

from dcnzoo.data.coco_file import CocoFile, Image
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.openmmlab.classes import OF_OBJECTS, declared_metainfo, numbers
from dcnzoo.openmmlab.config.tree import LOADERS, annotation_file, dicts, inner_data_sets
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.text import few

# for each class of data sets, values that disable the arguments that CocoDataset does not have
EXTRA: dict[str, dict[str, None]] = {"CocoDataset": {}, "ShapesDataset": {"shapes": None}}
FLIPPING = (LOADERS[0], "custom_hooks")  # the parts of a config that flip pictures of a training


def dataset_of(config: Mapping, loader: str) -> Any:
    """Return the data set that reads the annotations, inside wrappers.

    Raises:
        UserError: there are several, or it does not read COCO files.
    """
    kinds = [str(dataset.type) for dataset in inner_data_sets(config[loader].dataset)]
    if len(kinds) != 1 or kinds[0] not in EXTRA:
        raise UserError(f"{loader}: expected one CocoDataset, as in configs for COCO, got {few(kinds)}")
    return next(inner_data_sets(config[loader].dataset))


def pictures_of(config: Mapping, loader: str) -> set[str]:
    """Return the real paths of the pictures that a loader's COCO files name; files may be missing."""
    paths = set[str]()
    for dataset in inner_data_sets((config.get(loader) or {}).get("dataset", {})):
        file, folders = annotation_file(dataset), dataset.get("data_prefix") or {}
        folder = os.path.join(dataset.get("data_root") or "", folders.get("img") or "")
        with suppress(InvalidAnnotation):  # no file, or another format
            for _, image in CocoFile(file).entries("images", strict=False):
                if isinstance(image, Image) and image.file_name:
                    paths.add(os.path.realpath(os.path.join(folder, image.file_name)))
    return paths


def resizes_of(config: Mapping, loader: str) -> list[Any]:
    """Return the steps of a loader that resize pictures."""
    return [step for step in dataset_of(config, loader).pipeline if str(step["type"]).endswith("Resize")]


def has_size(config: Mapping, loader: str) -> bool:
    """Return whether a loader resizes pictures in one step, whose size can be set."""
    return [step["type"] for step in resizes_of(config, loader)] == ["Resize"]


def scale_of(config: Mapping) -> tuple[int, int] | None:
    """Return the most pixels of the longer and of the shorter side of test pictures; None: any number."""
    scales = [step.scale for step in resizes_of(config, LOADERS[2]) if "scale" in step]
    return (max(scales[0]), min(scales[0])) if scales else None


def flips_in(part: object) -> Iterator[dict]:
    """Yield the steps in a part of a config that flip pictures, also in other steps, wrappers and hooks."""
    for _, node in dicts(part):
        if str(node.get("type")).endswith("RandomFlip") and node.get("prob") != 0:
            yield node


def directions_of(config: Mapping) -> list[str]:
    """Return the directions in which a training flips pictures."""
    steps = flips_in([config.get(key) for key in FLIPPING])
    stated = [step.get("direction", "horizontal") for step in steps]  # each a name, or several
    return [*dict.fromkeys(chain(*([each] if isinstance(each, str) else each for each in stated)))]


def uses_masks(config: Mapping) -> bool:
    """Return whether a training learns from masks."""
    return any(step.get("with_mask") for step in dataset_of(config, LOADERS[0]).pipeline)


def number_of_classes(config: Config, name: str) -> int:
    """Return the value of ``num_classes`` that is the number of classes in the training data.

    Raises:
        UserError: the heads have several values, and none is that of the data; ``name`` is the config's.
    """
    known = declared_metainfo(dataset_of(config, LOADERS[0]))["classes"]
    values = sorted({number for _, _, key, number in numbers(config.model) if key in OF_OBJECTS})
    expected = values[0] if len(values) == 1 else len(known)
    if expected not in values:
        what = f"num_classes={', '.join(map(str, values))}" if values else "no num_classes"
        raise UserError(
            f"{name}: model: expected num_classes={expected}, the number of classes in its training data, "
            f"found {what}; set it in the config's heads"
        )
    return expected
