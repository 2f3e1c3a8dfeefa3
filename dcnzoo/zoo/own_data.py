"""``dcnzoo train --data``: from annotated pictures in any layout to a config that trains on them."""

import contextlib
import filecmp
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.device import get_device

from dcnzoo.data.dataset import ReadOptions, Split
from dcnzoo.data.preparation import read_data
from dcnzoo.utils.files import (
    numbered,
    partial_of,
    remove_abandoned,
    require_writable,
)
from dcnzoo.zoo.config_writer import BOXES, MASKS, write_settings

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
        decisions: one line for each choice.
    """

    config: Path
    epochs: int | None = None
    decisions: list[str] = field(default_factory=list)


def prepare(
    data: Path,
    work_dir: Path,
    model: str | None = None,
    options: ReadOptions = ReadOptions(),
) -> OwnData:
    """Convert and check annotated pictures, and write a config that trains on them.

    Writes ``train.json``, ``val.json``, perhaps ``test.json``, and the config to the folder ``data`` in the
    work directory, or to ``data_2``, … if the others have another content. Replaces nothing.

    Args:
        data: a folder or file, in any of the layouts of docs/train_your_data.md.
        work_dir: the work directory of the training.
        model: a name in the zoo, a config or a work directory. Default: on a GPU, a published model with
            DCNv2; on a CPU, a small one.
        options: how the annotations are read.

    Raises:
        UserError: the layout is unknown, a picture is in two splits, or the annotations have problems, one
            line each.
    """
    require_writable(work_dir)
    remove_abandoned(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    new = partial_of(work_dir / "data")  # beside the other folders, so that relative paths are the same
    try:
        new.mkdir()
        splits, decisions = _write_annotations(data, new, options)
        own = _configure(new / f"{work_dir.resolve().name or 'data'}.py", splits, model, decisions)
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


def _write_annotations(data: Path, folder: Path, options: ReadOptions) -> tuple[dict[str, Split], list[str]]:
    """Write the annotations to a folder; return them with the decisions."""
    splits, decisions = read_data(data, options)
    for split, annotations in splits.items():
        annotations.write(folder / f"{split}.json")
    return splits, decisions


def _is_equal(folder: Path, new: Path) -> bool:
    """Whether a folder has all of the new files with the same content."""
    names = [file.name for file in new.iterdir()]
    return not any(filecmp.cmpfiles(folder, new, names, shallow=False)[1:])


def _configure(out: Path, splits: Mapping[str, Split], model: str | None, decisions: list[str]) -> OwnData:
    """Choose a model and write the config."""
    masks = not any(each.without_mask for each in splits.values())
    small = model is None and get_device() == "cpu"
    if model is None:
        model = SMALL[masks] if small else MASKS if masks else BOXES
    result = OwnData(out, decisions=decisions)
    changes: dict[str, object] = {}
    if small:
        images = splits["train"].counts["images"]
        result.epochs = max(8, math.ceil(ITERATIONS * 4 / images))  # batches of 4
        changes["train_cfg.val_interval"] = max(1, result.epochs // VALIDATIONS)
        if masks:
            changes["train_dataloader.dataset.times"] = 1
        else:
            changes["model.backbone.dcn"] = True
    _, loads = write_settings(splits, out, model=model, weights=masks or not small, changes=changes)
    chosen = ", with model.backbone.dcn=True" if "model.backbone.dcn" in changes else ""
    decisions += [
        f"model     {model}{chosen}, {f'from {loads}' if loads else 'without published weights'}",
        f"config    {out}",
    ]
    return result
