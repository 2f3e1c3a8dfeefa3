"""``dcnzoo train --data``: from annotated pictures in any layout to a config that trains on them."""

import dataclasses
import filecmp
import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.device import get_device

from dcnzoo.data.annotations import Annotations
from dcnzoo.data.layouts import find_parts
from dcnzoo.data.preparation import read_splits
from dcnzoo.data.splits import AS_THEY_ARE, ReadOptions
from dcnzoo.openmmlab.checkpoints import SavedCheckpoints
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import files_beside, output_files, read_beside
from dcnzoo.utils.text import counted
from dcnzoo.zoo.config_writer import BOXES, MASKS, write_settings
from dcnzoo.zoo.source import resolve

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
    force: bool = False,
    options: ReadOptions = AS_THEY_ARE,
    resumes: bool = False,
) -> OwnData:
    """Convert and check annotated pictures, and write a config that trains on them.

    Writes ``train.json``, ``val.json``, perhaps ``test.json``, and the config to the folder ``data`` in the
    work directory, or to ``data_2``, … if trainings use the others.

    Args:
        data: a folder or file, in any of :data:`dcnzoo.data.layouts.LAYOUTS`.
        work_dir: the work directory of the training.
        model: a name in the zoo, a config or a work directory. Default: on a GPU, a published model with
            DCNv2; on a CPU, a small one.
        force: replace files in that folder that no training wrote.
        options: how the annotations are read.
        resumes: the data are those of the training in the work directory: write nothing, and require that
            the files would be the same.

    Raises:
        UserError: the layout is unknown, a picture is in two splits, a file would be replaced, or the
            annotations have problems, one line each.
    """
    if not resumes:
        return _write(data, work_dir, _data_folder(work_dir), model, force, options)
    folder = _data_of(work_dir)
    # beside the other one, so that relative paths are the same
    with tempfile.TemporaryDirectory(dir=work_dir, prefix=".data_") as new:
        own = _write(data, work_dir, Path(new), model, force, options)
        _require_equal(data, folder, Path(new))
    decisions = [line.replace(new, str(folder)) for line in own.decisions]
    return dataclasses.replace(own, config=folder / own.config.name, decisions=decisions)


def _write(
    data: Path, work_dir: Path, folder: Path, model: str | None, force: bool, options: ReadOptions
) -> OwnData:
    """Write annotations and config to a folder; see :func:`prepare`."""
    options = dataclasses.replace(options, extract=folder / "images")
    choice = find_parts(data, options)
    if options.zero_based and choice.name != "Pascal VOC":
        raise UserError(f"zero_based: expected data in the format of Pascal VOC, got {choice.name}")
    with output_files("train", [file for part in choice.parts for file in part.files], force) as claim:
        out = claim(folder / f"{work_dir.resolve().name or 'data'}.py")
        for split in ("train", "val"):
            claim(folder / f"{split}.json")  # before the work
        splits, decisions = read_splits(data, choice, options, claim)
        files = {split: claim(folder / f"{split}.json") for split in splits}
        for split, annotations in splits.items():
            annotations.write(files[split])
        return _configure(out, splits, model, decisions)


def _data_folder(work_dir: Path) -> Path:
    """Return the first of the folders ``data``, ``data_2``, … that no config of a training names."""
    if not SavedCheckpoints(work_dir).exist:
        return work_dir / "data"
    configs = (path for pattern in ("*.py", "replaced_*/*.py") for path in files_beside(work_dir, pattern))
    used = "".join(read_beside(config) or "" for config in configs)
    names = ("data", *(f"data_{number}" for number in range(2, used.count("/data_") + 3)))
    return work_dir / next(name for name in names if f"/{name}/" not in used)


def _data_of(work_dir: Path) -> Path:
    """Return the folder with the data of the training in a work directory."""
    names = re.findall(r"/(data(?:_\d+)?)/train\.json", read_beside(resolve(work_dir).config) or "")
    if not names:
        raise UserError(
            f"data: expected none with resume: the training in {work_dir} has its data elsewhere. The model "
            f"{work_dir} in place of data continues it"
        )
    return work_dir / names[0]


def _require_equal(data: Path, folder: Path, new: Path) -> None:
    """Raise UserError unless the folder has all new files with the same content."""
    for file in sorted(new.rglob("[!.]*"), key=lambda file: (file.suffix != ".json", file)):
        before = folder / file.relative_to(new)
        if not file.is_file() or (before.is_file() and filecmp.cmp(before, file, shallow=False)):
            continue
        if before.is_file():  # pictures inside annotation files are written to the folder, too
            content = file.read_bytes().replace(new.name.encode(), folder.name.encode())
            if content == before.read_bytes():
                continue
        raise UserError(
            f"data: expected that of the training, {before}{_counts(before)}, got another {file.name} from "
            f"{data}{_counts(file)}; the model {folder.parent} in place of data, with resume=True, continues "
            "the training without new data, force=True replaces it"
        )


def _counts(file: Path) -> str:
    content = read_beside(file, json.loads) if file.suffix == ".json" else None
    if not isinstance(content, dict):
        return ""
    numbers = {"pictures": content.get("images", ()), "objects": content.get("annotations", ())}
    return f" ({', '.join(counted(len(entries), name) for name, entries in numbers.items())})"


def _configure(
    out: Path,
    splits: Mapping[str, Annotations],
    model: str | None,
    decisions: list[str],
) -> OwnData:
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
    decisions += [
        f"model     {model}, {f'from {loads}' if loads else 'from random weights'}",
        f"config    {out}",
    ]
    return result
