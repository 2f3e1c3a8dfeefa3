"""``--data`` of ``dcnzoo train`` and ``test``: from annotated pictures to a config with them."""

import contextlib
import copy
import filecmp
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmengine.device import get_device

from dcnzoo.data.dataset import Dataset, ReadOptions
from dcnzoo.data.preparation import line_of, read_data, read_splits
from dcnzoo.data.tree import ALL
from dcnzoo.openmmlab.classes import declared_metainfo
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.files import numbered, partial_of, remove_abandoned, require_writable
from dcnzoo.utils.memory import return_memory
from dcnzoo.utils.text import counted, few
from dcnzoo.zoo.config_writer import BOXES, EXTRA, MASKS, dataset_of, write_settings

# train on a CPU within minutes; by whether all objects have masks. The first starts from the weights for
# generated shapes, the second from random ones.
SMALL = {True: "mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts", False: "faster-rcnn_r14_fpn_8e_bccd"}
ITERATIONS = 600  # of a small model: it then detects most objects of 40 pictures
VALIDATIONS = 10
READ_OPTIONS = ReadOptions()


@dataclass
class OwnData:
    """The result of :func:`prepare`.

    Attributes:
        config: a config that trains on the data.
        epochs: of a training that :func:`prepare` has chosen; None: those of the config.
        decisions: one line for each choice.
    """

    config: Path
    epochs: int | None = None
    decisions: list[str] = field(default_factory=list)


def prepare(
    data: Path,
    work_dir: Path,
    model: str | None = None,
    options: ReadOptions = READ_OPTIONS,
) -> OwnData:
    """Convert and check annotated pictures, and write a config that trains on them.

    Writes ``train.json``, ``val.json``, perhaps ``test.json``, and the config to the folder ``data`` in the
    work directory, or to ``data_2``, … if the others have another content. Replaces nothing.

    Args:
        data: a folder or file, as docs/train_your_data.md describes.
        work_dir: the work directory of the training.
        model: a name in the zoo, a config or a work directory. Default: on a GPU, a published model with
            DCNv2; on a CPU, a small one.
        options: how the annotations are read.

    Raises:
        UserError: the data have no format that is read, or several; a picture is in two splits; or the
            annotations have problems, one line each.
    """
    require_writable(work_dir)
    remove_abandoned(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    new = partial_of(work_dir / "data")  # beside the other folders, so that relative paths are the same
    try:
        new.mkdir()
        splits, decisions = read_data(data, options)
        for name, split in splits.items():
            split.write(new / f"{name}.json")
        own = _configure(new / f"{work_dir.resolve().name or 'data'}.py", splits, model, decisions)
        del splits
        return_memory()
        folder = numbered(work_dir / "data", lambda folder: _is_equal(folder, new))
        own.config = folder / own.config.name
        if not folder.exists():
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        with contextlib.suppress(OSError):  # it has files
            work_dir.rmdir()
    own.decisions = [line.replace(str(new), str(folder)) for line in own.decisions]
    return own


def _is_equal(folder: Path, new: Path) -> bool:
    """Whether a folder has all of the new files with the same content."""
    names = [file.name for file in new.iterdir()]
    return not any(filecmp.cmpfiles(folder, new, names, shallow=False)[1:])


def _configure(out: Path, splits: Mapping[str, Dataset], model: str | None, decisions: list[str]) -> OwnData:
    """Choose a model and write the config."""
    masks = not any(each.without_mask for each in splits.values())
    small = model is None and get_device() == "cpu"
    if model is None:
        model = SMALL[masks] if small else MASKS if masks else BOXES
    result = OwnData(out, decisions=decisions)
    changes: dict[str, object] = {}
    if small:
        images = len(splits["train"].sizes)
        result.epochs = max(8, math.ceil(ITERATIONS * 4 / images))  # batches of 4
        changes["train_cfg.val_interval"] = max(1, result.epochs // VALIDATIONS)
        if masks:
            changes["train_dataloader.dataset.times"] = 1
        else:
            changes["model.backbone.dcn"] = True
    _, loads = write_settings(splits, out, model, changes)
    chosen = ", with model.backbone.dcn=True" if "model.backbone.dcn" in changes else ""
    decisions += [
        f"model     {model}{chosen}, {f'from {loads}' if loads else 'without published weights'}",
        f"config    {out}",
    ]
    return result


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
