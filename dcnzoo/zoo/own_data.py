"""``dcnzoo train --data``: from annotated pictures in any layout to a config that trains on them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.device import get_device

from dcnzoo.data.check import Report
from dcnzoo.data.layouts import check_parts, copies_of, find_parts, unused
from dcnzoo.data.split import split_content
from dcnzoo.data.splits import Annotations, Part, ReadOptions
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import output_files, write_bytes
from dcnzoo.utils.findings import shown
from dcnzoo.utils.text import counted
from dcnzoo.zoo.config_writer import BOXES, MASKS, CheckedData, write_settings

# train on a CPU within minutes; by whether all objects have masks. The first starts from the weights for
# generated shapes, the second from random ones.
SMALL = {True: "mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts", False: "faster-rcnn_r14_fpn_8e_bccd"}
ITERATIONS = 600  # of a small model: it then detects most objects of 40 pictures
VALIDATIONS = 10
VALIDATION = 0.2  # share of the pictures, if the data has no validation set
READ_AS_IT_IS = ReadOptions()


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
    options: ReadOptions = READ_AS_IT_IS,
) -> OwnData:
    """Convert and check annotated pictures, and write a config that trains on them.

    Writes ``train.json``, ``val.json``, perhaps ``test.json``, and the config to the folder ``data`` in the
    work directory.

    Args:
        data: a folder or file, in any of :data:`dcnzoo.data.layouts.LAYOUTS`.
        work_dir: the work directory of the training.
        model: a name in the zoo or a config file. Default: on a GPU, a published model with DCNv2; on a CPU,
            a small one.
        force: replace files in that folder that no training wrote.
        options: how the annotations are read.

    Raises:
        UserError: the layout is unknown, a picture is in two splits, a file would be replaced, or the
            annotations have problems, one line each.
    """
    folder = work_dir / "data"
    layout, parts = find_parts(data)
    if options.zero_based and not layout.name.startswith("Pascal VOC"):
        raise UserError(f"zero_based: expected data in the format of Pascal VOC, got {layout.name}")
    with output_files("train", [file for part in parts for file in part.annotations], force) as claim:
        out = claim(folder / f"{work_dir.name}.py")
        for split in ("train", "val"):
            claim(folder / f"{split}.json")  # before the work
        has_test = parts[-1].split == "test"
        parts = _read(parts, dataclasses.replace(options, extract=folder / "images"))
        sources, chosen = _sources(parts)
        decisions = [f"data      {data}, {layout.name.partition(',')[0]}"]
        for split, source in sources.items():
            decisions.append(_described(split, source, chosen if split == "val" else ""))
        if has_test and "test" not in sources:
            decisions.append("test      not used: no objects or no pictures of the test set were found")
        if left := unused(data, parts):
            decisions.append(f"not used  {left}: no annotation names them, or they are of another split")
        if repaired := [text for part in parts for text in part.load().repaired]:
            decisions.append(f"repaired  {'; '.join(repaired)}")
        extracted = [each for part in parts for each in part.load().extracted]
        files = {split: folder / f"{split}.json" for split in sources}
        for file in (*files.values(), *(file for file, _ in extracted)):
            claim(file)
        for file, content in extracted:
            write_bytes(file, content())
        for split, source in sources.items():
            source.report.write(files[split])
        return _configure(out, sources, model, decisions)


def _read(parts: Sequence[Part], options: ReadOptions) -> list[Part]:
    """Read all parts, give them the same categories, and check what must hold between them.

    A test part without pictures or objects, such as one whose annotations are secret, is left out.
    """
    parts = [part for part in parts if part.split != "test" or _can_be_tested(part, options)]
    read = [part.load(options) for part in parts]
    if problems := [problem for each in read for problem in each.problems]:
        *lines, last = shown(problems)
        hints = {
            "clipped": "clip=True cuts objects off at the border",
            "dropped": "skip_invalid=True leaves out what is invalid",
            "recomputed": "dcnzoo data check --fix computes boxes from masks",
        }
        remedies = {problem.remedy for problem in problems} | ({"dropped"} if not problems[0].kind else set())
        raise UserError(*lines, "; ".join([last, *(hints[key] for key in hints if key in remedies)]))
    _unify(read)
    if findings := check_parts(parts):
        raise UserError(*(f"data: {finding}" for finding in findings))
    return parts


def _can_be_tested(part: Part, options: ReadOptions) -> bool:
    try:
        return part.load(options).report.counts["annotations"] > 0
    except UserError:
        return False


def _unify(parts: Sequence[Annotations]) -> None:
    """Give parts that differ in their categories those of the first one, in its order, with ids from 1.

    Categories that only other parts have follow. A category without objects that contains all others, which
    Roboflow writes, is left out.
    """
    reports = [part.report for part in parts]
    categories = {each["name"]: each for report in reports for each in report.categories}
    groups = {each.get("supercategory") for each in categories.values()} - {"none", ""}
    group = groups.pop() if len(groups) == 1 and len(categories) > 1 else None
    if group in categories and not any(report.per_class.get(str(group)) for report in reports):
        del categories[group]
    if all(report.categories == [*categories.values()] for report in reports):
        return
    ids = {name: number for number, name in enumerate(categories, 1)}
    for part in parts:
        names = {each["id"]: each["name"] for each in part.report.categories}
        part.report = part.report.editable()
        content = part.report.content
        content["categories"] = [{**each, "id": ids[name]} for name, each in categories.items()]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[names[annotation["category_id"]]]


def _sources(parts: Sequence[Part]) -> tuple[dict[str, CheckedData], str]:
    """Return the data of each split, and how the validation set was chosen if the data has none."""
    loaded = {part.split: part.load() for part in parts}
    sources = {split: CheckedData(each.report, each.folder) for split, each in loaded.items()}
    if (pool := sources.pop("all", None)) is None:
        return sources, ""
    pictures = dict(zip(loaded["all"].pictures, (image["id"] for image in pool.report.images), strict=True))
    copies = {pictures[a]: pictures[b] for a, b in copies_of(pictures, pictures).items()}
    contents = split_content(pool.report.content, VALIDATION, copies=copies)
    train, val = (CheckedData(Report(Path(), content, []), pool.images) for content in contents)
    chosen = f", {VALIDATION:.0%} of the pictures at random (seed 0) for validation"
    return {"train": train, "val": val, **sources}, chosen


def _described(split: str, source: CheckedData, how: str) -> str:
    report = source.report
    crowds = f" and {counted(report.crowds, 'crowds')}" if report.crowds else ""
    counts = [
        counted(report.counts["images"], "pictures"),
        f"{counted(report.counts['annotations'] - report.crowds, 'objects')}{crowds}",
        f"{report.empty_images} without objects",
    ]
    return f"{split:8}  {', '.join(counts)}: {source.images}{how}"


def _configure(
    out: Path, sources: Mapping[str, CheckedData], model: str | None, decisions: list[str]
) -> OwnData:
    """Choose a model and write the config."""
    masks = not any(source.report.without_mask for source in sources.values())
    small = model is None and get_device() == "cpu"
    model = model or (SMALL[masks] if small else MASKS if masks else BOXES)
    result = OwnData(out, decisions=decisions)
    changes: dict[str, object] = {}
    if small:
        images = sources["train"].report.counts["images"]
        result.epochs = max(8, math.ceil(ITERATIONS * 4 / images))  # batches of 4
        changes["train_cfg.val_interval"] = max(1, result.epochs // VALIDATIONS)
        if masks:
            changes["train_dataloader.dataset.times"] = 1
        else:
            changes["model.backbone.dcn"] = True
    weights = not (small and not masks)
    _, loads = write_settings(sources, out, model=model, weights=weights, changes=changes)
    decisions += [
        f"model     {model}, {f'from {loads}' if loads else 'from random weights'}",
        f"config    {out}",
    ]
    return result
