"""``--data`` of ``dcnzoo train`` and ``test``: from annotated pictures to a config with them."""

import copy
import filecmp
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.device import get_device

from dcnzoo.data.dataset import Dataset, ReadOptions
from dcnzoo.data.preparation import line_of, read_splits
from dcnzoo.data.tree import ALL
from dcnzoo.openmmlab.classes import declared_metainfo
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.files import numbered, partial_of, remove_abandoned, require_writable
from dcnzoo.utils.text import counted, few
from dcnzoo.zoo.config_writer import BOXES, EXTRA, MASKS, dataset_of, write_settings

# train on a CPU within minutes; by whether all objects have masks. The first starts from the weights for
# generated shapes, the second from random ones.
SMALL = {True: "mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts", False: "faster-rcnn_r14_fpn_8e_bccd"}
ITERATIONS = 600  # of a small model: it then detects most objects of 40 pictures
VALIDATIONS = 10


@dataclass
class OwnData:
    """The result of :func:`prepare`.

    Attributes:
        config: a config that trains on the data.
        epochs: of a training that :func:`prepare` has chosen; None: those of the config.
        model: its name, and from which weights it starts.
    """

    config: Path
    epochs: int | None
    model: str


def require_data(options: ReadOptions, data: object) -> None:
    """Raise UserError if an option is set without data."""
    names = [name for name, value in vars(options).items() if value != getattr(ReadOptions, name)]
    if data is None and names:
        raise UserError(f"{names[0]}: expected data, got none")


def prepare(splits: Mapping[str, Dataset], work_dir: Path, model: str | None = None) -> OwnData:
    """Write the COCO files of annotated pictures, and a config that trains on them.

    They are ``train.json``, ``val.json``, perhaps ``test.json``, and the config, in the folder ``data`` in
    the work directory, or in ``data_2``, … if the others have another content. Replaces nothing.

    Args:
        splits: the pictures, of :func:`dcnzoo.data.preparation.read_data`.
        work_dir: the work directory of the training.
        model: a name in the zoo, a config or a work directory. Default: on a GPU, a published model with
            DCNv2; on a CPU, a small one.

    Raises:
        UserError: the model is unknown, or cannot learn from the data.
    """
    require_writable(work_dir)
    remove_abandoned(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    new = partial_of(work_dir / "data")  # beside the other folders, so that relative paths are the same
    try:
        new.mkdir()
        for name, split in splits.items():
            split.write(new / f"{name}.json")
        own = _configure(new / f"{work_dir.resolve().name or 'data'}.py", splits, model)
        folder = numbered(work_dir / "data", lambda folder: _is_equal(folder, new))
        if not folder.exists():
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    own.config = folder / own.config.name
    return own


def _is_equal(folder: Path, new: Path) -> bool:
    """Whether a folder has all of the new files with the same content."""
    names = [file.name for file in new.iterdir()]
    return not any(filecmp.cmpfiles(folder, new, names, shallow=False)[1:])


def _configure(out: Path, splits: Mapping[str, Dataset], model: str | None) -> OwnData:
    """Choose a model and write the config."""
    masks = not any(each.without_mask for each in splits.values())
    small = model is None and get_device() == "cpu"
    if model is None:
        model = SMALL[masks] if small else MASKS if masks else BOXES
    epochs, changes, chosen = None, dict[str, object](), ""
    if small:
        epochs = max(8, math.ceil(ITERATIONS * 4 / len(splits["train"].sizes)))  # batches of 4
        changes["train_cfg.val_interval"] = max(1, epochs // VALIDATIONS)
        if masks:
            changes["train_dataloader.dataset.times"] = 1
        else:
            changes["model.backbone.dcn"], chosen = True, ", with model.backbone.dcn=True"
    _, loads = write_settings(splits, out, model, changes)
    return OwnData(
        out, epochs, f"{model}{chosen}, {f'from {loads}' if loads else 'without published weights'}"
    )


def with_own_data(recipe: Recipe, data: Path, options: ReadOptions, folder: Path) -> Recipe:
    """Return the recipe of a test on annotated pictures, whose COCO file is written to a folder.

    Raises:
        UserError: the data cannot be read, or have classes that the model does not know.
    """
    cfg = copy.deepcopy(recipe.cfg)
    _, dataset = dataset_of(cfg, "test_dataloader")
    if not isinstance(cfg.get("test_evaluator"), Mapping) or cfg.test_evaluator.get("type") != "CocoMetric":
        raise UserError(f"test_evaluator: expected a CocoMetric, got {cfg.get('test_evaluator')}")
    classes = tuple(declared_metainfo(dataset)["classes"])
    kind, splits, notes = read_splits(data, replace(options, classes=classes))
    name = next(name for name in ("test", "val", ALL) if name in splits)
    split = splits[name]
    if absent := [label for label, number in split.per_class.items() if not number]:
        notes.append(f"no objects of {counted(len(absent), 'classes')}: {few(absent)}")
    lines = [f"data      {data}, {kind}", line_of(name, split), *(f"note      {note}" for note in notes)]
    print(*map(printable, lines), sep="\n")
    split.write(folder / f"{name}.json")
    path = str(split.file.resolve())
    dataset.update({**EXTRA[dataset.type], "data_root": "", "ann_file": path})
    dataset.data_prefix = {"img": f"{split.folder}/"}
    cfg.test_evaluator.ann_file = path
    return replace(recipe, cfg=cfg)
