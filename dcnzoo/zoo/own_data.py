"""``dcnzoo train --data``: from annotated pictures in any format to a config that trains on them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.device import get_device

from dcnzoo.data.check import checked_coco
from dcnzoo.data.conversion import CocoBuilder, InvalidAnnotation, read_json, write_json
from dcnzoo.data.labelme import convert_labelme
from dcnzoo.data.split import split_coco
from dcnzoo.data.voc import convert_voc
from dcnzoo.data.yolo import YOLO, convert_yolo
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import image_folder, output_files
from dcnzoo.utils.findings import shown
from dcnzoo.utils.text import counted
from dcnzoo.zoo.config_writer import BOXES, MASKS, write_config

# train on a CPU within minutes; by whether all objects have masks. The first starts from the weights for
# generated shapes, the second from random ones.
SMALL = {True: "mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts", False: "faster-rcnn_r14_fpn_8e_bccd"}
ITERATIONS = 600  # of a small model: it then detects most objects of 40 pictures
VALIDATIONS = 10
VALIDATION = 0.2  # share of the pictures, if the data has no validation set
FORMATS = "a COCO file, a folder of Pascal VOC or LabelMe, or YOLO's data.yaml"


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
) -> OwnData:
    """Convert and check annotated pictures, and write a config that trains on them.

    Writes ``train.json``, ``val.json`` and the config to the folder ``data`` in the work directory.

    Args:
        data: a folder or file: COCO, Pascal VOC, YOLO or LabelMe.
        work_dir: the work directory of the training.
        model: a name in the zoo or a config file. Default: on a GPU, a published model with DCNv2; on a CPU,
            a small one.
        force: replace files in that folder that no training wrote.

    Raises:
        UserError: the format is unknown, a file would be replaced, or the annotations have problems, one line
            each.
    """
    name, folder = find_format(data), work_dir / "data"
    inputs = _json_files(data) if name == "coco" else ()
    with output_files("train", inputs, force) as claim:
        files = claim(folder / "train.json"), claim(folder / "val.json")
        out = claim(folder / f"{work_dir.name}.py")
        parts = list(_READERS[name](data, folder))
        for builder, _ in parts:
            for target, _ in builder.extracted if isinstance(builder, CocoBuilder) else ():
                claim(target)
        decisions = [f"data: {data}, format {name}"]
        if len(parts) == 1:
            _write([parts[0]], [claim(folder / "all.json")])
            split_coco(folder / "all.json", files, VALIDATION)
            decisions.append(f"validation: {VALIDATION:.0%} of the pictures, chosen at random (seed 0)")
            parts *= 2
        else:
            _write(parts, files)
        return _configure(out, files, (parts[0][1], parts[1][1]), model, decisions)


def _configure(
    out: Path, files: tuple[Path, Path], folders: tuple[Path, Path], model: str | None, decisions: list[str]
) -> OwnData:
    """Choose a model and write the config."""
    reports = [checked_coco(file, images) for file, images in zip(files, folders, strict=True)]
    masks = all(each.get("segmentation") for report in reports for each in report.content["annotations"])
    small = model is None and get_device() == "cpu"
    model = model or (SMALL[masks] if small else MASKS if masks else BOXES)
    images = reports[0].counts["images"]
    result = OwnData(out, decisions=decisions)
    changes: dict[str, object] = {}
    if small:
        result.epochs = max(8, math.ceil(ITERATIONS * 4 / images))  # batches of 4
        changes["train_cfg.val_interval"] = max(1, result.epochs // VALIDATIONS)
        if masks:
            changes["train_dataloader.dataset.times"] = 1
        else:
            changes["model.backbone.dcn"] = True
    weights = not (small and not masks)
    write_config(*files, out, *folders, model=model, weights=weights, changes=changes)
    loads = read_config_file(out).get("load_from")
    decisions += [
        f"model: {model}, {f'from {loads}' if loads else 'from random weights'}",
        f"config: {out} ({counted(images, 'images')} to train on, {reports[1].counts['images']} to validate)",
    ]
    return result


def find_format(data: Path) -> str:
    """Return ``coco``, ``voc``, ``yolo`` or ``labelme``.

    Raises:
        UserError: it is none of them.
    """
    if data.suffix in (".yaml", ".yml", ".data") or any((data / name).is_file() for name in YOLO):
        return "yolo"
    if data.is_dir() and any(next(data.glob(pattern), None) for pattern in ("*.xml", "[Aa]nnotations/*.xml")):
        return "voc"
    for file in _json_files(data):
        content = _read(file)
        if {"images", "annotations"} <= content.keys():
            return "coco"
        if "shapes" in content:
            return "labelme"
    raise UserError(f"data: expected {FORMATS}, got {data}")


def _json_files(data: Path) -> list[Path]:
    if data.is_file():
        return [data] if data.suffix == ".json" else []
    return sorted([*data.glob("*.json"), *data.glob("annotations/*.json")])


def _read(file: Path) -> dict:
    try:
        content = read_json(file)
    except InvalidAnnotation as error:
        raise UserError(f"{file}: {error}") from None
    return content if isinstance(content, dict) else {}


Part = tuple[CocoBuilder | dict, Path]  # the annotations, and the folder of the images


def _coco(data: Path, folder: Path) -> Iterator[Part]:
    files = {file: content for file in _json_files(data) if "annotations" in (content := _read(file))}
    val = [file for file in files if "val" in file.stem]
    train = [file for file in files if "train" in file.stem] or [file for file in files if file not in val]
    if len(train) > 1 or len(val) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(
            f"data: expected one COCO file for training and at most one for validation, got {names}"
        )
    for file in (*train, *val):
        entries = [entry for entry in files[file].get("images", ()) if isinstance(entry, dict)]
        images = image_folder(file, [entry.get("file_name") for entry in entries])
        if images is None:
            raise UserError(
                f"{file}: expected the images beside the file or in a folder there, found none of them"
            )
        yield checked_coco(file, images).content, images


def _voc(data: Path, folder: Path) -> Iterator[Part]:
    lists = {file.stem for file in (*data.glob("ImageSets/Main/*.txt"), *data.glob("ImageSets/*.txt"))}
    if {"train", "val"} <= lists:
        yield convert_voc(data, "train")
        yield convert_voc(data, "val")
    else:
        yield convert_voc(data, "trainval" if "trainval" in lists else None)


def _yolo(data: Path, folder: Path) -> Iterator[Part]:
    yield convert_yolo(data)
    try:
        yield convert_yolo(data, "val")
    except UserError as error:
        if "expected a split" not in str(error):
            raise


def _labelme(data: Path, folder: Path) -> Iterator[Part]:
    yield convert_labelme(data, extract=folder / "images")


_READERS = {"coco": _coco, "voc": _voc, "yolo": _yolo, "labelme": _labelme}


def _write(parts: list[Part], files: list[Path] | tuple[Path, ...]) -> None:
    """Write COCO files with the same classes; nothing if there is a problem."""
    builders = [part for part, _ in parts if isinstance(part, CocoBuilder)]
    problems = [problem for builder in builders for problem in builder.problems]
    if problems:
        raise UserError(*shown(problems))
    names = {category["name"]: None for builder in builders for category in builder.content()["categories"]}
    for (part, _), file in zip(parts, files, strict=True):
        if isinstance(part, CocoBuilder):
            part.classes = part.classes or tuple(sorted(names))
            part.write(file)
        else:
            write_json(part, file)
