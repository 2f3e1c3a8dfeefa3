"""``dcnzoo data``: show annotations, convert them to COCO's format, check COCO files, download data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from dcnzoo.cli import _command, _options, _types
from dcnzoo.cli._options import option
from dcnzoo.data.download import COCO, SMALL, USUAL
from dcnzoo.utils.errors import UserError, show
from dcnzoo.utils.text import counted

SOURCE = click.argument("source", type=_types.DATA)


@click.group(cls=_command.Group)
def command() -> None:
    """Show your own data, convert it to COCO's format, check it; download data.

    \b
    examples:
      dcnzoo data show fruits
      dcnzoo data convert fruits fruits_coco
      dcnzoo data check fruits
    """


@command.command
@SOURCE
@click.argument("out", type=_types.FOLDER)
@option("--classes", type=_types.Names(), help="Class names in order: a,b,c or a file with one per line.")
@_options.reading
@_options.force
def convert(source: Path, out: Path, classes: list[str] | None, force: bool, **options: Any) -> None:
    """Write train.json, val.json and perhaps test.json in COCO's format to OUT, as train --data does.

    SOURCE is a folder, or a file that describes the data, such as data.yaml. If there are problems, list
    them with file and line, and write nothing. --force also removes the test.json of an earlier set.

    \b
    examples:
      dcnzoo data convert VOCdevkit/VOC2007 voc_coco
      dcnzoo data convert fruits/data.yaml fruits_coco --clip
    """
    from dcnzoo.data.reading import describe, read

    names = ("train", "val", "test")
    files = {name: _options.output_file(out / f"{name}.json", force=force) for name in names}
    data = read(source, classes=tuple(classes or ()), **options)
    splits = data.split()
    for name, split in splits.items():
        split.write(files[name])
    show(*describe(data, splits))
    test, folder = files["test"], source if source.is_dir() else source.parent
    # of the set that --force replaces, unless it is one of the files that were read
    if "test" not in splits and test.exists() and not test.resolve().is_relative_to(folder.resolve()):
        test.unlink()
        show(f"removed   {test}: these data have no test split")


@command.command("show")
@SOURCE
@option("--out", type=_types.FileName(".html"), default="sheet.html", help="Output file.")
@option("--size", type=_types.POSITIVE, metavar="N", help="Longer side of the pictures in the training.")
@_options.reading
@_options.force
def show_(source: Path, out: Path, size: int | None, force: bool, **options: Any) -> None:
    """Write a page with pictures of SOURCE and their labels, the sizes of the objects, and the classes.

    SOURCE is what data convert reads. dcnzoo train --data writes this page before the training.

    \b
    examples:
      dcnzoo data show fruits --out fruits.html --size 512
    """
    from dcnzoo.data.reading import describe, read
    from dcnzoo.report.sheet import write_sheet

    out = _options.output_file(out, force=force)
    data = read(source, **options)
    splits = data.split()
    show(*describe(data, splits))
    show(f"sheet     {write_sheet(splits, out, size=size, force=force)}")


@command.command
@SOURCE
@option("--as-mmdetection", is_flag=True, help="Check a COCO file for train CONFIG, without its pictures.")
@_options.reading
def check(source: Path, as_mmdetection: bool, **options: Any) -> None:
    """Check annotated pictures; list each problem, and exit with status 1 if there are any.

    SOURCE is what data convert and train --data read. With --as-mmdetection, it is a COCO file for your own
    config, which is checked for what MMDetection cannot use.

    \b
    examples:
      dcnzoo data check fruits
      dcnzoo data check train.json --as-mmdetection
    """
    from dcnzoo.data.reading import DataError, describe, read

    if as_mmdetection:
        _options.refuse("--as-mmdetection", *options)
        sys.exit(_check_coco(source))
    try:
        data = read(source, **options)
    except DataError as error:
        raise UserError(error.args[0], *map(str, error.problems)) from None
    show(*describe(data, data.stated()), "no problems")


def _check_coco(file: Path) -> bool:
    """Print the problems of a COCO file; return whether there are any."""
    from dcnzoo.data.check import read_used
    from dcnzoo.data.coco_file import KEYS

    truth = read_used(file)
    print(", ".join(counted(len(getattr(truth.content, key)), key) for key in KEYS))
    for problem in truth.problems:
        show(f"{file}: {problem}")
    if truth.ignored:
        print(truth.ignore_note)
    print(counted(len(truth.problems), "problems") if truth.problems else "no problems")
    return bool(truth.problems)


@command.command
@option("--dataset-name", type=click.Choice(["coco2017", *SMALL]), default="coco2017")
@option(
    "--parts", multiple=True, metavar="PART", type=click.Choice(list(COCO)), show_default=" ".join(USUAL),
    help=f"Part of COCO, several times for several: {', '.join(COCO)}.",
)  # fmt: skip
@option("--out", type=_types.FOLDER, help="Output folder.", show_default="data/coco or data/NAME")
@option("--unzip", is_flag=True, help="Unpack COCO's archives (the small data sets are always unpacked).")
@option("--delete", is_flag=True, help="Delete each archive after unpacking.")
@option("--list", "only_list", is_flag=True, help="Print the addresses without downloading.")
@option("--force", is_flag=True, help="Let --unzip replace files with another content.")
def download(
    dataset_name: str, parts: tuple[str, ...], out: Path | None, unzip: bool, delete: bool, only_list: bool,
    force: bool,
) -> None:  # fmt: skip
    """Download COCO or a small data set.

    The small data sets are bccd (blood cells) and fruits_nuts; they are ready for training. An interrupted
    download begins anew. Complete files are not downloaded again.

    \b
    examples:
      dcnzoo data download --unzip --delete
      dcnzoo data download --dataset-name bccd
    """
    from dcnzoo.data.download import download_part, download_small

    if dataset_name in SMALL:
        _options.refuse(f"--dataset-name {dataset_name}", "parts", "unzip", "delete")
        if only_list:
            print(SMALL[dataset_name][0])
        else:
            print(download_small(dataset_name, out or Path("data", dataset_name)))
        return
    if not unzip:
        _options.refuse_without("--unzip", "delete")
    for part in parts or USUAL:
        if only_list:
            print(COCO[part][0], COCO[part][1] or "")
        else:
            for line in download_part(part, out or Path("data/coco"), unzip, delete, force):
                print(line, flush=True)
