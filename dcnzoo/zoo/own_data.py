"""``--data`` of ``dcnzoo train`` and ``test``: choose a model for annotated pictures, and write COCO files.

:mod:`dcnzoo.data.reading` reads the pictures, :mod:`dcnzoo.zoo.config_writer` writes the config.
"""

import copy
import filecmp
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device

from dcnzoo.data.dataset import ALL, Dataset, ReadOptions, require_masks, without_mask
from dcnzoo.data.reading import describe, read
from dcnzoo.openmmlab.classes import declared_metainfo
from dcnzoo.openmmlab.config.tree import LOADERS
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.utils.errors import UserError, show
from dcnzoo.utils.files import numbered, partial_folder, require_writable
from dcnzoo.utils.text import counted, few
from dcnzoo.zoo.config_reader import dataset_of, directions_of, has_size, pictures_of, scale_of
from dcnzoo.zoo.config_writer import (
    BOXES,
    MASKS,
    SMALL_BOXES,
    SMALL_MASKS,
    Choice,
    with_data,
    write_settings,
)

SIDE = 24  # pixels of an object, the root of its box's area: three steps of the small models' finest features
TOO_SMALL = 8  # pixels: one step
SIZES = range(320, 801, 32)  # the longer side of a small model's pictures; it trains on crops of 320 pixels
FEW = 10  # objects of a class: with fewer, it is learnt badly
ITERATIONS = 600  # of a small model: it then detects most objects of 40 pictures
VALIDATIONS = 10


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options of a training on own data.

    Attributes:
        size: the longer side of resized pictures in pixels (default: that of the model's config; for a small
            model, 320 to 800, so that nine of ten objects are larger than 24 pixels).
        flip: whether the training flips pictures; False for text and digits.
        zero_based, clip, skip_invalid: see :class:`dcnzoo.data.dataset.ReadOptions`.
    """

    size: int | None = None
    flip: bool = True
    zero_based: bool = False
    clip: bool = False
    skip_invalid: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and not (type(self.size) is int and self.size > 0):
            raise UserError(f"size: expected an integer ≥ 1, got {self.size!r}")

    @property
    def reading(self) -> ReadOptions:
        return ReadOptions(self.zero_based, self.clip, self.skip_invalid)


def require_data(options: DataOptions | ReadOptions, data: object) -> None:
    """Raise UserError if an option is set without data."""
    changed = [field.name for field in fields(options) if getattr(options, field.name) != field.default]
    if data is None and changed:
        raise UserError(f"{changed[0]}: expected data=PATH as well, got none")


def choose(
    splits: Mapping[str, Dataset], model: str | os.PathLike[str] | None, options: DataOptions
) -> Choice:
    """Choose the model of a training, and what changes in its config.

    Args:
        model: a name in the zoo, a config or a work directory. None: on a GPU, a published model with
            DCNv2; on a CPU, a small one, whose epochs and size of pictures depend on the data.
    """
    masks, train = not without_mask(splits.values())[0], splits["train"]
    if model is None and get_device() != "cpu":
        model = MASKS if masks else BOXES
    if model is not None:
        return Choice(model=str(model), size=options.size, flip=options.flip)
    epochs = max(8, math.ceil(ITERATIONS * 4 / len(train.pictures)))  # batches of 4
    return Choice(
        model=SMALL_MASKS if masks else SMALL_BOXES,
        epochs=epochs,
        val_interval=max(1, epochs // VALIDATIONS),
        size=options.size or size_for(side_of(train)),
        flip=options.flip,
    )


def side_of(split: Dataset) -> float:
    """Return the side that nine of ten objects but crowds exceed, a part of their picture's longer side."""
    sides = sorted(side / max(size) for side, size in split.sides)
    return sides[len(sides) // 10]


def size_for(side: float) -> int:
    """Return the first of :data:`SIZES` at which an object of this relative side has :data:`SIDE` pixels."""
    return next((size for size in SIZES if size * side >= SIDE), SIZES[-1])


def write_data(splits: Mapping[str, Dataset], work_dir: Path, choice: Choice) -> Path:
    """Write the COCO files of annotated pictures, and a config that trains on them; return the config.

    The folder ``data`` in the work directory gets ``train.json``, ``val.json``, the config and, if there is
    such a split, ``test.json``. No file is replaced: if the content differs, the folder is ``data_2``, ….

    Args:
        splits: the pictures, as :meth:`dcnzoo.data.dataset.Dataset.split` returns them.
        work_dir: the work directory of the training.

    Raises:
        UserError: the model is unknown, or cannot learn from the data.
    """
    require_writable(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    with partial_folder(work_dir) as new:  # beside the final folder, so that relative paths are the same
        for name, split in splits.items():
            split.write(new / f"{name}.json")
        config = new / f"{work_dir.resolve().name or 'data'}.py"
        write_settings(splits, config, choice)
        names = [file.name for file in new.iterdir()]  # a folder with the same files is used again
        folder = numbered(
            work_dir / "data", lambda old: filecmp.cmpfiles(old, new, names, shallow=False)[0] == names
        )
        if not folder.exists():
            new.rename(folder)
    return folder / config.name


def lines_of(config: Config, split: Dataset) -> list[str]:
    """Return lines about the initial weights of a training, its pictures, and classes with few objects.

    Args:
        config: with the settings of the user.
        split: the pictures to train on.
    """
    side = side_of(split)
    hint = "; --size changes it" if all(has_size(config, loader) for loader in LOADERS) else ""
    weights = Path(config.get("load_from") or "").name  # its folder is renamed after the config is written
    lines = [f"start     weights of {weights}" if weights else "start     random weights"]
    size, shorter = scale_of(config) or (0, 0)
    if size != shorter:  # the longer side depends on the picture
        lines.append(f"input     at most {size} × {shorter} pixels{hint}")
    elif size:
        objects = f"9 of 10 objects are larger than {side:.1%} of it, {size * side:.0f} pixels then"
        lines.append(f"input     {size} pixels, the longer side: {objects}{hint}")
        if size * side < TOO_SMALL:
            remedy = "set a larger --size; at this one"
            if size >= SIZES[-1]:
                remedy = "cut the pictures into tiles before labelling; trained on whole pictures"
            small = f"one of ten objects is below {TOO_SMALL} pixels"
            lines.append(f"note      {small}: {remedy} they are not found")
    lines.append(f"flips     {', '.join(directions_of(config)) or 'none'}")
    if few_of := [f"{name} ({number})" for name, number in split.per_class.items() if number < FEW]:
        lines.append(f"note      fewer than {FEW} objects to train on: {few(few_of)}")
    return lines


def with_own_data(
    recipe: Recipe, data: Path, options: ReadOptions, folder: Path, metrics: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of a test on annotated pictures; write their COCO file to ``folder``.

    Raises:
        UserError: the data cannot be read, lack masks, or have classes that the model does not know.
    """
    cfg = copy.deepcopy(recipe.cfg)
    classes = tuple(declared_metainfo(dataset_of(cfg, "test_dataloader"))["classes"])
    pictures = read(data, **vars(replace(options, classes=classes)))
    name, split, note = to_test(pictures, pictures_of(cfg, "train_dataloader"))
    show(*describe(pictures, {name: split}), *note)
    file = folder / f"{name}.json"
    split.write(file)
    cfg.update(with_data(cfg, "test", file, split.folder))
    if "segm" in (metrics or cfg.test_evaluator.get("metric", "bbox")):
        require_masks([split], " for the metric segm", "metrics=bbox compares boxes")
    return replace(recipe, cfg=cfg)


def to_test(data: Dataset, learnt: Collection[str]) -> tuple[str, Dataset, list[str]]:
    """Choose the pictures of a test: the data's test set, else its validation set, else all.

    Pictures that the model was trained on are left out, unless all are.

    Args:
        learnt: the real paths of the pictures that the model was trained on.

    Returns:
        The name of the set, its pictures, and a line if the model was trained on some.
    """
    name = next(name for name in ("test", "val", ALL) if name in data.splits)
    pictures = data.splits[name]
    others = [picture for picture in pictures if os.path.realpath(picture.file) not in learnt]
    lines = []
    if not others:
        lines = ["note      the model was trained on all of these pictures"]
    elif len(others) < len(pictures):
        number = counted(len(pictures) - len(others), "pictures")
        lines = [f"note      {number} left out: the model was trained on them"]
    return name, data.part(name, others or pictures), lines
