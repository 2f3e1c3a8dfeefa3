"""``--data`` of ``dcnzoo train`` and ``test``: write COCO files of annotated pictures, and a config."""

import copy
import filecmp
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from dcnzoo.utils.text import few
from dcnzoo.zoo.config_writer import (
    BOXES,
    MASKS,
    SMALL_BOXES,
    SMALL_MASKS,
    dataset_of,
    flips_of,
    has_size,
    scale_of,
    set_data,
    write_settings,
)

SIDE = 24  # pixels of an object, the root of its box's area: three steps of the small models' finest features
TOO_SMALL = 8  # pixels: one step
SIZES = range(320, 801, 32)  # the longer side of a small model's pictures; it trains on crops of 320 pixels
FEW = 10  # objects of a class: with fewer, it is learnt badly
ITERATIONS = 600  # of a small model: it then detects most objects of 40 pictures
VALIDATIONS = 10


def require_data(options: ReadOptions, data: object, size: int | None = None, flip: bool = True) -> None:
    """Raise UserError if an option is set without data."""
    is_set = {"size": size is not None, "flip": not flip, **vars(options)}
    names = [name for name, value in is_set.items() if value]
    if data is None and names:
        raise UserError(f"{names[0]}: expected data=PATH as well, got none")


def write_data(
    splits: Mapping[str, Dataset],
    work_dir: Path,
    model: str | None,
    *,
    size: int | None = None,
    flip: bool = True,
) -> tuple[Path, str]:
    """Write the COCO files of annotated pictures, and a config that trains on them.

    The folder ``data`` in the work directory gets ``train.json``, ``val.json``, the config and, if there is
    such a split, ``test.json``. No file is replaced: if the content differs, the folder is ``data_2``, ….

    Args:
        splits: the pictures, as :meth:`dcnzoo.data.dataset.Dataset.split` returns them.
        work_dir: the work directory of the training.
        model: a name in the zoo, a config or a work directory. None: on a GPU, a published model with
            DCNv2; on a CPU, a small one.
        size, flip: see :func:`dcnzoo.zoo.config_writer.write_settings`. By default, the size of a small
            model's pictures is chosen by :func:`choose_size`.

    Returns:
        The config, and the model.

    Raises:
        UserError: the model is unknown, or cannot learn from the data.
    """
    require_writable(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    with partial_folder(work_dir) as new:  # beside the final folder, so that relative paths are the same
        for name, split in splits.items():
            split.write(new / f"{name}.json")
        config = new / f"{work_dir.resolve().name or 'data'}.py"
        model = _configure(config, splits, model, size, flip)
        names = [file.name for file in new.iterdir()]  # a folder with the same files is used again
        folder = numbered(
            work_dir / "data", lambda old: filecmp.cmpfiles(old, new, names, shallow=False)[0] == names
        )
        if not folder.exists():
            new.rename(folder)
    return folder / config.name, model


def choose_size(split: Dataset) -> tuple[int, float]:
    """Return the size of pictures at which nine of ten objects are larger than :data:`SIDE`, if it can be.

    An object's side is relative to the longer side of its picture.

    Returns:
        The size, one of :data:`SIZES`; and the side that nine of ten objects exceed, a part of the longer
        side. Crowds are not counted.
    """
    sides = sorted(side / max(size) for side, size in split.sides)
    side = sides[len(sides) // 10]
    return next((size for size in SIZES if size * side >= SIDE), SIZES[-1]), side


def _configure(
    out: Path, splits: Mapping[str, Dataset], model: str | None, size: int | None, flip: bool
) -> str:
    """Choose a model, and write the config; return the model."""
    masks = not without_mask(splits.values())[0]
    epochs, changes = None, dict[str, object]()
    if model is None and get_device() == "cpu":
        model = SMALL_MASKS if masks else SMALL_BOXES
        epochs = max(8, math.ceil(ITERATIONS * 4 / len(splits["train"].pictures)))  # batches of 4
        changes["train_cfg.val_interval"] = max(1, epochs // VALIDATIONS)
        size = size or choose_size(splits["train"])[0]
    elif model is None:
        model = MASKS if masks else BOXES
    write_settings(splits, out, model, changes, epochs=epochs, size=size, flip=flip)
    return model


def lines_of(config: Config, split: Dataset, can_set_size: bool) -> list[str]:
    """Return lines about the initial weights of a training, its pictures, and classes with few objects.

    Args:
        config: with the settings of the user.
        split: the pictures to train on.
        can_set_size: whether the user may set a size, because none is set.
    """
    side = choose_size(split)[1]
    can_set_size = can_set_size and all(has_size(config, loader) for loader in LOADERS)
    hint = "; --size changes it" if can_set_size else ""
    weights = Path(config.get("load_from") or "").name  # its folder is renamed after the config is written
    lines = [f"start     weights of {weights}" if weights else "start     random weights"]
    size, shorter = scale_of(config) or (0, 0)
    if size != shorter:  # the longer side depends on the picture
        lines.append(f"input     at most {size} × {shorter} pixels{hint}")
    elif size:
        objects = f"9 of 10 objects are larger than {side:.1%} of it, {size * side:.0f} pixels then"
        lines.append(f"input     {size} pixels, the longer side: {objects}{hint}")
        if size * side < TOO_SMALL and size < SIZES[-1]:
            lines.append(f"note      objects below {TOO_SMALL} pixels are not found: set a larger --size")
        elif size * side < TOO_SMALL:
            remedy = (
                "cut the pictures into tiles before labelling; trained on whole pictures they are not found"
            )
            lines.append(f"note      one of ten objects is below {TOO_SMALL} pixels: {remedy}")
    directions = dict[str, None]()
    for step in flips_of(config):
        direction = step.get("direction", "horizontal")
        directions.update(dict.fromkeys([direction] if isinstance(direction, str) else direction))
    lines.append(f"flips     {', '.join(directions) or 'none'}")
    few_of = [f"{name} ({number})" for name, number in split.per_class.items() if number < FEW]
    return [*lines, *([f"note      fewer than {FEW} objects to train on: {few(few_of)}"] if few_of else [])]


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
    name = next(name for name in ("test", "val", ALL) if name in pictures.splits)
    split = pictures.part(name, pictures.splits[name])
    show(*describe(pictures, {name: split}))
    split.write(folder / f"{name}.json")
    set_data(cfg, "test", folder / f"{name}.json", split.folder)
    if "segm" in (metrics or cfg.test_evaluator.get("metric", "bbox")):
        require_masks([split], " for the metric segm", "metrics=bbox compares boxes")
    return replace(recipe, cfg=cfg)
