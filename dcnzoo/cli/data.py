"""``dcnzoo data``: convert annotations to COCO's format, check and split COCO files, download data."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import EXISTING_FOLDER, FILE, FOLDER, option
from dcnzoo.cli._terminal import print_columns, print_findings
from dcnzoo.data.download import COCO, SMALL, USUAL
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.files import read_beside, write_text
from dcnzoo.utils.text import counted, cut

if TYPE_CHECKING:
    from dcnzoo.data.annotations import Annotations


FORMATS = {"voc": "Pascal VOC", "yolo": "YOLO", "labelme": "LabelMe", "via": "VIA"}


@click.group(cls=_options.Group)
def command() -> None:
    """Convert your own data to COCO's format, check it, split it.

    \b
    examples:
      dcnzoo data convert voc fruits fruits/train.json --split train
      dcnzoo data check fruits/train.json --images fruits/JPEGImages
    """


@command.command
@click.argument("format", type=click.Choice([*FORMATS]))
@click.argument("source", type=_options.UserPath(path_type=Path))
@click.argument("out", type=FILE)
@option(
    "--split",
    metavar="NAME",
    default="",
    help="A list in ImageSets, a key of data.yaml (default: train), or a word of folders.",
)
@option(
    "--classes",
    type=_options.Names(),
    help="Class names in their order in OUT: a,b,c or a file with one name per line.",
)
@option("--clip", is_flag=True, help="Clip objects to the image instead of reporting them.")
@option("--skip-invalid", is_flag=True, help="Skip invalid objects and write the rest.")
@option(
    "--difficult",
    type=click.Choice(["ignore", "keep", "drop"]),
    default="ignore",
    help="voc: exclude difficult objects from training and AP (iscrowd), keep or drop them.",
)
@option("--zero-based", is_flag=True, help="voc: coordinates are edges from 0, not pixels from 1.")
@option("--extract", type=FOLDER, help="labelme: write images that exist only inside JSON files there.")
@_options.force
def convert(
    format: str, source: Path, out: Path, split: str, skip_invalid: bool, force: bool, **options: Any
) -> None:
    """Convert annotations of other tools in SOURCE to the COCO file OUT.

    SOURCE is a folder, or a file that describes the data, such as data.yaml. If there are problems, list all
    of them with file and line, and write nothing.

    \b
    examples:
      dcnzoo data convert voc VOCdevkit/VOC2007 train.json --split trainval
      dcnzoo data convert yolo fruits/data.yaml val.json --split val
      dcnzoo data convert labelme fruits fruits.json --classes date,fig,hazelnut
    """
    from dcnzoo.data import layouts
    from dcnzoo.data.splits import ReadOptions

    _options.output_file(out, force=force)
    data = layouts.convert(source, FORMATS[format], split, ReadOptions(**options))
    invalid = [*data.problems, *data.missing]
    print_findings(invalid, file=sys.stderr)
    data.save(out, skip_invalid)
    _show_written(out, data.content)
    print(printable(f"classes: {', '.join(map(cut, data.per_class))}"))
    print(printable(f"images:  {data.folder}"))
    notes = data.repaired
    if absent := [cut(name) for name, number in data.per_class.items() if not number]:
        notes.append(f"none of {', '.join(absent)}")
    if invalid:
        notes.append(f"{len(invalid)} skipped")
    if invalid and data.emptied:
        notes.append(f"{counted(data.emptied, 'images')} without objects, because all are invalid")
    if notes:
        print(printable(f"objects: {', '.join(notes)}"))


@command.command
@click.argument("file", type=FILE, callback=_options.existing)
@option("--images", type=EXISTING_FOLDER, help="Folder of the images; also decode them, check their sizes.")
@option("--classes", type=_options.Names(), help="Classes in a config's metainfo: a,b,c or a file.")
@option(
    "--config",
    type=FILE,
    callback=_options.existing,
    help="Config with the expected classes, those of its training data.",
)
@option("--json", "as_json", is_flag=True, help="Print the complete report as JSON.")
@option("--fix", type=FILE, metavar="OUT", help="Write a copy without the problems.")
@option("--force", is_flag=True, help="Let --fix replace FILE itself, or another file.")
def check(
    file: Path,
    images: Path | None,
    classes: list[str] | None,
    config: Path | None,
    as_json: bool,
    fix: Path | None,
    force: bool,
) -> None:
    """Check the COCO file FILE; exit with status 1 if it has problems.

    \b
    examples:
      dcnzoo data check train.json --images images
      dcnzoo data check train.json --images images --fix fixed.json
    """
    from dcnzoo.data import check as checking

    if config is not None:
        if classes is not None:
            raise UserError("--config: not allowed with --classes")
        classes = _classes_of(config)
    if fix is not None:
        _options.output_file(fix, force=force)
    report = checking.check_coco(file, images, classes, decode=True)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))  # ASCII, for every terminal
    else:
        _show(report)
    if fix is not None:
        done = checking.fix(report, fix)
        text = [f"{counted(n, key)} {what}" for key, counts in done.items() for what, n in counts.items()]
        print(f"written: {fix}: {', '.join(text) or 'nothing to fix'}", file=sys.stderr)
    elif report.problems:
        sys.exit(1)


@command.command
@click.argument("file", type=FILE, callback=_options.existing)
@click.argument("train", type=FILE)
@click.argument("val", type=FILE)
@option("--val-ratio", type=float, default=0.2, help="Share of the images in VAL.")
@option("--seed", type=int, default=0)
@_options.force
def split(file: Path, train: Path, val: Path, val_ratio: float, seed: int, force: bool) -> None:
    """Split the COCO file FILE into TRAIN and VAL.

    Distributes the images at random.

    \b
    examples:
      dcnzoo data split fruits.json train.json val.json --val-ratio 0.2
    """
    from dcnzoo.data.split import split_coco

    outs = train, val
    for out, part in zip(outs, split_coco(file, outs, val_ratio, seed, force), strict=True):
        _show_written(out, part)


@command.command
@click.argument("train", type=FILE, callback=_options.existing)
@click.argument("val", type=FILE, callback=_options.existing)
@click.argument("out", type=FILE)
@option("--images", type=EXISTING_FOLDER, required=True, help="Folder of the images.")
@option("--val-images", type=EXISTING_FOLDER, help="Folder of VAL's images (default: the same).")
@option(
    "--model",
    type=_options.NAME,
    metavar="NAME",
    help="Name in the zoo, or a config file (default: Mask R-CNN with DCNv2, or Faster R-CNN for boxes).",
)
@option(
    "--no-weights",
    "weights",
    flag_value=False,
    default=True,
    show_default=False,
    help="Train from scratch, without published weights.",
)
@_options.force
def config(out: Path, force: bool, **options: Any) -> None:
    """Write a config that trains a model on your data.

    The config OUT inherits from a published model and uses the COCO files TRAIN and VAL.

    \b
    examples:
      dcnzoo data config train.json val.json fruits.py --images images
      dcnzoo train fruits.py --auto-scale-lr
    """
    _options.output_file(out, force=force)
    from dcnzoo.zoo.config_writer import write_config

    base = write_config(out=out, **options)
    print(f"written: {out}, based on {base}")
    if options["train"].samefile(options["val"]):
        print("note: TRAIN is VAL: the validation measures on the pictures of the training", file=sys.stderr)


@command.command
@option("--dataset-name", type=click.Choice(["coco2017", *SMALL]), default="coco2017")
@option(
    "--parts",
    multiple=True,
    metavar="PART",
    type=click.Choice(list(COCO)),
    show_default=" ".join(USUAL),
    help=f"Part of COCO, several times for several: {', '.join(COCO)}.",
)
@option("--out", type=FOLDER, help="Output folder.", show_default="data/coco, data/bccd, data/fruits_nuts")
@option("--unzip", is_flag=True, help="Unpack COCO's archives (the small data sets are always unpacked).")
@option("--delete", is_flag=True, help="Delete each archive after unpacking.")
@option("--list", "only_list", is_flag=True, help="Print the addresses without downloading.")
@option("--force", is_flag=True, help="Let --unzip replace files with another content.")
def download(
    dataset_name: str,
    parts: tuple[str, ...],
    out: Path | None,
    unzip: bool,
    delete: bool,
    only_list: bool,
    force: bool,
) -> None:
    """Download COCO or a small data set.

    The small data sets are bccd (blood cells) and fruits_nuts; they are ready for training. An interrupted
    download is resumed. Complete files are not downloaded again.

    \b
    examples:
      dcnzoo data download --unzip --delete
      dcnzoo data download --dataset-name bccd
    """
    from dcnzoo.data.download import prepare, unpack
    from dcnzoo.utils.fetch import fetch

    if dataset_name in SMALL:
        if parts or unzip or delete:
            raise click.UsageError("--parts, --unzip, --delete: allowed only with coco2017")
        out = out or Path("data") / dataset_name
        if only_list:
            print(SMALL[dataset_name][0])
            return
        is_complete = (out / "train.json").is_file() and (out / "val.json").is_file()
        if not is_complete:
            if out.is_dir() and any(out.iterdir()):
                raise UserError(f"--out: expected a new folder, got {out}, which is not empty")
            archive = fetch(SMALL[dataset_name][0], out.parent)
            prepare(dataset_name, archive, out)
            archive.unlink()
        files = ", ".join(sorted(file.name for file in out.glob("*.json")))
        print(f"{'already has' if is_complete else 'written'}: {out}: images, {files}")
        return
    out = out or Path("data/coco")
    if delete and not unzip:
        raise click.UsageError("--delete: expected --unzip as well; otherwise nothing is left")
    for url, checksum in (COCO[part] for part in parts or USUAL):
        if only_list:
            print(url, checksum or "")
            continue
        # the names of the files of an unpacked archive, which may have been deleted
        unpacked = out / f".{Path(url).name}.unpacked"
        names = (read_beside(unpacked) or "").splitlines()
        if unzip and names and all((out / name).is_file() for name in names):
            print(f"{out}: already has {Path(url).name}")
            continue
        archive = fetch(url, out, checksum=checksum)
        print(archive if checksum else f"{archive} (no checksum is known)", flush=True)
        if unzip:
            names = unpack(archive, out, force)
            print(f"{out}: {counted(len(names), 'files')}", flush=True)
            write_text(unpacked, "\n".join(names))
        if delete:
            archive.unlink()


def _show_written(out: Path, content: dict) -> None:
    objects = counted(len(content["annotations"]), "objects")
    print(f"written: {out}: {counted(len(content['images']), 'images')}, {objects}")


def _classes_of(config: Path) -> list[str]:
    from dcnzoo.openmmlab.classes import metainfo
    from dcnzoo.openmmlab.config.errors import config_errors
    from dcnzoo.openmmlab.runs.recipe import Recipe

    cfg = Recipe.read(config, required=["train_dataloader"]).cfg
    with config_errors(cfg):
        return list(metainfo(cfg.train_dataloader.dataset)["classes"])


def _show(report: Annotations) -> None:
    from dcnzoo.data.check import KINDS

    counts = ", ".join(counted(number, key) for key, number in report.counts.items())
    print(printable(f"{report.file}: {counts}"))
    if report.per_class:
        rows = [(cut(printable(name)), str(number)) for name, number in report.per_class.items()]
        print_columns([("class", "annotations"), *rows], numbers=True)
    if report.empty_images:
        print(f"{counted(report.empty_images, 'images')} without an annotation")
    if report.crowds:
        whole = " (all of them)" if report.crowds == report.counts["annotations"] else ""
        print(
            f"{counted(report.crowds, 'annotations')}{whole} with iscrowd or ignore, which training ignores"
        )
    if not report.problems:
        print("no problems")
        return
    numbers = Counter(problem.kind for problem in report.problems)
    kinds = [(KINDS[kind].text, str(number), KINDS[kind].remedy or "–") for kind, number in numbers.items()]
    print_columns([("problem", "number", "--fix"), *kinds])
    print_findings(report.problems, f"{report.file}: ")
    print(counted(len(report.problems), "problems"))
