"""``dcnzoo train --data``: from annotated pictures in any layout to a config that trains on them."""

import contextlib
import dataclasses
import filecmp
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.device import get_device

from dcnzoo.data.annotations import Annotations
from dcnzoo.data.layouts import find_parts
from dcnzoo.data.preparation import read_splits
from dcnzoo.data.splits import AS_THEY_ARE, ReadOptions
from dcnzoo.openmmlab.config.tree import LOADERS
from dcnzoo.openmmlab.runs.recipe import read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import (
    numbered,
    partial_of,
    read_beside,
    remove_abandoned,
    require_writable,
    write_text,
)
from dcnzoo.utils.marks import PROGRAM, mark
from dcnzoo.utils.text import counted
from dcnzoo.zoo.config_writer import BOXES, MASKS, dataset_of, settings_of, write_settings
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
        config: a config that trains on the data; of a training that resumes, that in its work directory.
        epochs: of a training that :func:`prepare` has chosen; None: those of the config.
        decisions: one line for each choice.
        moved: settings of a training's config with which it uses pictures in another folder.
    """

    config: Path
    epochs: int | None = None
    moved: dict[str, str] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)


def prepare(
    data: Path,
    work_dir: Path,
    model: str | None = None,
    options: ReadOptions = AS_THEY_ARE,
    resumes: bool = False,
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
        resumes: the data are those of the training in the work directory: require that its annotations, and
            the model if there is one, are the same; use the pictures where they are now.

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
        if resumes:
            return _continued(data, work_dir, new, splits, model, decisions)
        own = _configure(new / f"{work_dir.resolve().name or 'data'}.py", splits, model, decisions)
        folder = numbered(work_dir / "data", lambda folder: _different(folder, new) is None)
        own.config = folder / own.config.name
        if not folder.exists():
            if (new / "images").exists():  # pictures inside annotation files, whose paths have the name
                for file in (*new.glob("*.py"), *new.glob("*.json")):
                    file.write_bytes(_renamed(file, new, folder))
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        with contextlib.suppress(OSError):  # it has files
            work_dir.rmdir()
    own.decisions = [line.replace(str(new), str(folder)) for line in own.decisions]
    return own


def _write_annotations(
    data: Path, folder: Path, options: ReadOptions
) -> tuple[dict[str, Annotations], list[str]]:
    """Write the annotations to a folder; return them with the decisions."""
    options = dataclasses.replace(options, extract=folder / "images")
    choice = find_parts(data, options)
    if options.zero_based and choice.name != "Pascal VOC":
        raise UserError(f"zero_based: expected data in the format of Pascal VOC, got {choice.name}")
    splits, decisions = read_splits(data, choice, options)
    for split, annotations in splits.items():
        annotations.write(folder / f"{split}.json")
    return splits, decisions


def moved_data(data: str | os.PathLike[str], work_dir: Path) -> dict[str, str]:
    """Return the settings with which a training uses its pictures, which have moved to another folder.

    Raises:
        UserError: the annotations there are not those of the training.
    """
    return prepare(Path(data).expanduser(), work_dir, resumes=True).moved


def _data_of(work_dir: Path) -> Path:
    """Return the folder with the data of the training in a work directory."""
    names = re.findall(r"/(data(?:_\d+)?)/train\.json", read_beside(resolve(work_dir).config) or "")
    if not names:
        raise UserError(
            f"data: expected none with resume: the training in {work_dir} has its data elsewhere. The model "
            f"{work_dir} in place of data continues it"
        )
    return work_dir / names[0]


def _continued(
    data: Path,
    work_dir: Path,
    new: Path,
    splits: Mapping[str, Annotations],
    model: str | None,
    decisions: list[str],
) -> OwnData:
    """Require that a training has the new annotations and the model; use the pictures where they are now."""
    folder, config = _data_of(work_dir), resolve(work_dir).config
    hint = (
        f"the model {work_dir} in place of data, with resume=True, continues the training without new data, "
        "force=True replaces it"
    )
    if file := _different(folder, new, "*.json"):
        before = folder / file.relative_to(new)
        raise UserError(
            f"data: expected that of the training, {before}{_counts(before)}, got another {file.name} from "
            f"{data}{_counts(file)}; {hint}"
        )
    if model is not None:
        # that of the training may have other settings of the same model
        name = f"{work_dir.resolve().name}.py"
        first = min(folder.glob("*.py"), key=lambda path: (path.name != name, path), default=config)
        if read_config_file(first).model != settings_of(splits, new, model)[1].model:
            raise UserError(f"model: expected that of the training, {first}, got {model}; {hint}")
    own, moved = read_config_file(config), dict[str, str]()
    for loader, split in zip(LOADERS, ("train", "val", "test"), strict=True):
        keys, dataset = dataset_of(own, loader)
        images = str(splits.get(split, splits["val"]).folder).replace(new.name, folder.name)
        if os.path.realpath(dataset.data_prefix.img) != os.path.realpath(images):
            moved[".".join((loader, *keys, "data_prefix.img"))] = f"{os.path.realpath(images)}/"
    decisions = [line.replace(str(new), str(folder)) for line in decisions]
    return OwnData(config, moved=moved, decisions=[*decisions, f"config    {config}"])


_VERSION = re.compile(rb"(?<=written by dcnzoo )[^\"\n]*")


def _different(folder: Path, new: Path, pattern: str = "[!.]*") -> Path | None:
    """Return the first of the new files that a folder does not have with the same content."""
    files = filter(Path.is_file, new.rglob(pattern))
    for file in sorted(files, key=lambda path: (path.suffix != ".json", path)):
        before = folder / file.relative_to(new)
        if not before.is_file():
            return file
        if filecmp.cmp(before, file, shallow=False):
            continue
        if _VERSION.sub(b"", _renamed(file, new, folder)) != _VERSION.sub(b"", before.read_bytes()):
            return file
    return None


def _renamed(file: Path, new: Path, folder: Path) -> bytes:
    """Return the content of a file with the final name of the folder."""
    return file.read_bytes().replace(new.name.encode(), folder.name.encode())


def _counts(file: Path) -> str:
    content = read_beside(file, json.loads) if file.suffix == ".json" else None
    if not isinstance(content, dict):
        return ""
    numbers = {"pictures": content.get("images", ()), "objects": content.get("annotations", ())}
    return f" ({', '.join(counted(len(entries), name) for name, entries in numbers.items())})"


def _configure(
    out: Path, splits: Mapping[str, Annotations], model: str | None, decisions: list[str]
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
    # the mark keeps other trainings from reading this folder as data
    write_text(out, f"{PROGRAM}{mark('config', out.name)}\n{out.read_text(encoding='utf-8')}")
    chosen = ", with model.backbone.dcn=True" if "model.backbone.dcn" in changes else ""
    decisions += [
        f"model     {model}{chosen}, {f'from {loads}' if loads else 'without published weights'}",
        f"config    {out}",
    ]
    return result
