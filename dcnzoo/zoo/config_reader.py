"""Answer questions about a detector's config: its data sets, pictures and classes.

No function here changes a config. :mod:`dcnzoo.zoo.config_writer` computes settings from the answers.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from mmcv import transforms
from mmdet.datasets.transforms import Resize
from mmengine.config import Config

from dcnzoo.data.coco_file import CocoFile, Image
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.openmmlab.classes import OF_OBJECTS, data_sets, declared_metainfo, numbers
from dcnzoo.openmmlab.config.tree import LOADERS, annotation_file, class_of, dicts, inner_data_sets
from dcnzoo.openmmlab.datasets.coco import CocoDataset, ShapesDataset
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.text import few

# for each class of data sets, values that disable the arguments that CocoDataset does not have
EXTRA: dict[type | None, dict[str, None]] = {CocoDataset: {}, ShapesDataset: {"shapes": None}}
RESIZING = (transforms.Resize, transforms.RandomResize, transforms.RandomChoiceResize)
FLIPPING = (LOADERS[0], "custom_hooks")  # the parts of a config that flip pictures of a training


def dataset_of(config: Mapping, loader: str) -> Any:
    """Return the data set that reads the annotations, inside wrappers.

    Raises:
        UserError: there are several, or it does not read COCO files.
    """
    found = [*inner_data_sets(config[loader].dataset)]
    if len(found) != 1 or class_of(found[0]) not in EXTRA:
        got = few([str(dataset.type) for dataset in found])
        raise UserError(f"{loader}: expected one CocoDataset, as in configs for COCO, got {got}")
    return found[0]


def image_paths(config: Mapping, loader: str) -> tuple[list[Path], list[Path]]:
    """Return the pictures that a loader's COCO files name.

    Returns:
        The pictures, and the files that are missing: pictures, and annotations that are not COCO's.
    """
    paths, unread = list[Path](), list[Path]()
    for dataset in (dataset for name, dataset, _ in data_sets(config) if name == loader):
        file, folders = Path(annotation_file(dataset)), dataset.get("data_prefix") or {}
        folder = Path(dataset.get("data_root") or "", folders.get("img") or "")
        try:
            for _, image in CocoFile(file).entries("images", strict=False):
                if isinstance(image, Image) and image.file_name:
                    paths.append(folder / image.file_name)
        except InvalidAnnotation:  # no file, or another format
            unread.append(file)
    found = [path for path in paths if path.is_file()]
    return found, [*unread, *sorted({*paths} - {*found})]


def resizes_of(config: Mapping, loader: str) -> list[Any]:
    """Return the steps of a loader that resize pictures."""
    return [
        step for step in dataset_of(config, loader).pipeline if issubclass(class_of(step) or object, RESIZING)
    ]


def has_size(config: Mapping, loader: str) -> bool:
    """Return whether a loader resizes pictures in one step, whose size can be set."""
    return [*map(class_of, resizes_of(config, loader))] == [Resize]


def scale_of(config: Mapping) -> tuple[int, int] | None:
    """Return the most pixels of the longer and of the shorter side of test pictures; None: any number."""
    for step in resizes_of(config, LOADERS[2]):
        if "scale" in step:
            sides = (step.scale, step.scale) if isinstance(step.scale, int) else step.scale
            return max(sides), min(sides)
    return None


def rates_of(config: Mapping) -> tuple[float, float, int] | None:
    """Return a training's learning rate in one process, that with auto_scale_lr, and its batch size.

    None: the config does not have them, or not in one place.
    """
    wrapper, scaling = config["optim_wrapper"], config.get("auto_scale_lr") or {}
    rate, size = (wrapper.get("optimizer") or {}).get("lr"), config["train_dataloader"].get("batch_size")
    if not (rate and size):
        return None
    batch = size * wrapper.get("accumulative_counts", 1)
    scaled = rate * batch / scaling.get("base_batch_size", batch)
    return (scaled if scaling.get("enable") else rate), scaled, batch


def flips_in(part: object) -> Iterator[dict]:
    """Yield the steps in a part of a config that flip pictures, also in other steps, wrappers and hooks."""
    for _, node in dicts(part):
        if issubclass(class_of(node) or object, transforms.RandomFlip) and node.get("prob") != 0:
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
