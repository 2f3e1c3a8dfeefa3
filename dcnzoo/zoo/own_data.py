"""``--data`` of ``dcnzoo train`` and ``test``: write COCO files of annotated pictures, and a config."""

import copy
import filecmp
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.device import get_device

from dcnzoo.data.dataset import Dataset, ReadOptions, without_mask
from dcnzoo.data.preparation import line_of, read_splits
from dcnzoo.data.tree import ALL
from dcnzoo.openmmlab.classes import declared_metainfo
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.utils.errors import UserError, show
from dcnzoo.utils.files import numbered, partial_of, remove_abandoned, require_writable
from dcnzoo.utils.text import counted, few
from dcnzoo.zoo.config_writer import BOXES, MASKS, dataset_of, set_data, write_settings

# models that train on a CPU within minutes; the key is whether all objects have masks. The first starts from
# the weights for generated shapes, the second from random weights.
SMALL = {True: "mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts", False: "faster-rcnn_r14_fpn_8e_bccd"}
ITERATIONS = 600  # of a small model: it then detects most objects of 40 pictures
VALIDATIONS = 10


def require_data(options: ReadOptions, data: object) -> None:
    """Raise UserError if an option is set without data."""
    names = [name for name, value in vars(options).items() if value != getattr(ReadOptions, name)]
    if data is None and names:
        raise UserError(f"{names[0]}: expected data=PATH as well, got none")


def write_data(
    splits: Mapping[str, Dataset], work_dir: Path, model: str | None
) -> tuple[Path, int | None, str]:
    """Write the COCO files of annotated pictures, and a config that trains on them.

    The folder ``data`` in the work directory gets ``train.json``, ``val.json``, the config and, if there is
    such a split, ``test.json``. No file is replaced: if the content differs, the folder is ``data_2``, ….

    Args:
        splits: the pictures, as :func:`dcnzoo.data.preparation.read_data` returns them.
        work_dir: the work directory of the training.
        model: a name in the zoo, a config or a work directory. None: on a GPU, a published model with
            DCNv2; on a CPU, a small one.

    Returns:
        The config; the chosen number of epochs, None: that of the config; and a text with the name of the
        model and its initial weights.

    Raises:
        UserError: the model is unknown, or cannot learn from the data.
    """
    require_writable(work_dir)
    remove_abandoned(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    new = partial_of(work_dir / "data")  # beside the final folder, so that relative paths are the same
    try:
        new.mkdir()
        for name, split in splits.items():
            split.write(new / f"{name}.json")
        config = new / f"{work_dir.resolve().name or 'data'}.py"
        epochs, chosen = _configure(config, splits, model)
        folder = numbered(work_dir / "data", lambda older: _has_copies(older, new))
        if not folder.exists():
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder / config.name, epochs, chosen


def _has_copies(folder: Path, files: Path) -> bool:
    """Whether a folder has each file of another one, with the same content."""
    names = [file.name for file in files.iterdir()]
    return filecmp.cmpfiles(folder, files, names, shallow=False)[0] == names


def _configure(out: Path, splits: Mapping[str, Dataset], model: str | None) -> tuple[int | None, str]:
    """Choose a model and write the config; return the epochs and the model, as :func:`write_data` does."""
    masks = not without_mask(splits.values())[0]
    epochs, changes, setting = None, dict[str, object](), ""
    if model is None and get_device() == "cpu":
        model = SMALL[masks]
        epochs = max(8, math.ceil(ITERATIONS * 4 / len(splits["train"].pictures)))  # batches of 4
        changes["train_cfg.val_interval"] = max(1, epochs // VALIDATIONS)
        if masks:
            changes["train_dataloader.dataset.times"] = 1
        else:
            changes["model.backbone.dcn"], setting = True, ", with model.backbone.dcn=True"
    elif model is None:
        model = MASKS if masks else BOXES
    _, weights = write_settings(splits, out, model, changes)
    return epochs, f"{model}{setting}, {f'from {weights}' if weights else 'without published weights'}"


def with_own_data(
    recipe: Recipe, data: Path, options: ReadOptions, folder: Path, metrics: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of a test on annotated pictures; write their COCO file to ``folder``.

    Raises:
        UserError: the data cannot be read, lack masks, or have classes that the model does not know.
    """
    cfg = copy.deepcopy(recipe.cfg)
    classes = tuple(declared_metainfo(dataset_of(cfg, "test_dataloader"))["classes"])
    kind, splits, notes = read_splits(data, replace(options, classes=classes))
    name, split = next((name, splits[name]) for name in ("test", "val", ALL) if name in splits)
    if absent := [label for label, number in split.per_class.items() if not number]:
        notes.append(f"no objects of {counted(len(absent), 'classes')}: {few(absent)}")
    show(f"data      {data}, {kind}", line_of(name, split), *(f"note      {note}" for note in notes))
    split.write(folder / f"{name}.json")
    set_data(cfg, "test", split)
    if split.without_mask and "segm" in (metrics or cfg.test_evaluator.get("metric", "bbox")):
        got = f"{counted(split.without_mask, 'objects')} without one; metrics=bbox compares boxes"
        raise UserError(f"data: expected a mask of every object for the metric segm, got {got}")
    return replace(recipe, cfg=cfg)
