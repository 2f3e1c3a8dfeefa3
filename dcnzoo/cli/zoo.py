"""``dcnzoo zoo``: published models, their results and their weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option
from dcnzoo.cli._terminal import print_columns
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.text import counted

if TYPE_CHECKING:
    from dcnzoo.zoo import Model


WIDE = 175  # columns of the table, without long sources of figures
AS_JSON = option("--json", "as_json", is_flag=True, help="Print all information as JSON.")


@click.group(cls=_options.Group)
def command() -> None:
    """List and download published models.

    NAME is a config's name without .py (faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco), one of its names in
    MMDetection, or package::folder/config.

    \b
    examples:
      dcnzoo zoo list --dcn
      dcnzoo zoo list mask rcnn
      dcnzoo zoo info faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco
      dcnzoo zoo download faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco --out checkpoints
    """


@command.command("list")
@click.argument("words", nargs=-1)
@option("--dcn", is_flag=True, help="List only models with deformable convolution.")
@option("--measured", is_flag=True, help="List only models that dcnzoo measured.")
@AS_JSON
def list_(words: tuple[str, ...], dcn: bool, measured: bool, as_json: bool) -> None:
    """List models, with WORDS only those whose names or paper contain all of them.

    Column *here*: the weights are on this machine, or to be downloaded, or there are none.
    """
    from dcnzoo import zoo

    named = zoo.search(words)
    if not named:
        raise UserError(f"{' '.join(words)}: expected words in the names or paper of one model, found none")
    models = {
        model: operators
        for model in named
        if (model.measured or not measured) and ((operators := zoo.operators_of(model)) or not dcn)
    }
    if not models:
        options = [name for name, is_set in (("--dcn", dcn), ("--measured", measured)) if is_set]
        raise UserError(f"{' and '.join(options)}: expected one of these models, found none")
    if as_json:
        print(json.dumps([_known(*each) for each in models.items()], indent=2))
        return
    rows: list[Sequence[str]] = [("name", "box AP", "mask AP", "deformable", "here", "figures")]
    for model, operators in models.items():
        text = ", ".join(f"{operator} ({part})" for part, operator in operators.items())
        for source in model.sources() or [""]:
            figures = [model.metrics(source).get(name, "–") for name in ("box AP", "mask AP")]
            rows.append([printable(str(cell)) for cell in (model.name, *figures, text, _here(model), source)])
    if sys.stdout.isatty() and (width := shutil.get_terminal_size().columns) < WIDE:
        print(*_narrow(rows, width), sep="\n")
    else:
        print_columns(rows)
    print(counted(len(models), "models"), file=sys.stderr)


@command.command
@click.argument("name", type=_options.MODEL)
@AS_JSON
def info(name: str, as_json: bool) -> None:
    """Print all information about a model."""
    from dcnzoo import zoo

    model = zoo.find(name)
    known = _known(model, zoo.operators_of(model))
    if as_json:
        print(json.dumps(known, indent=2))
        return
    rows = []
    for key, value in known.items():
        lines = value if isinstance(value, tuple) else [value] if value else []
        rows += [("" if number else key, printable(_text(line))) for number, line in enumerate(lines)]
    print_columns(rows)


@command.command
@click.argument("names", type=_options.MODEL, nargs=-1, required=True, metavar="NAME...")
@option("--out", type=_options.FOLDER, help="Output folder (default: torch's cache).")
def download(names: tuple[str, ...], out: Path | None) -> None:
    """Download and verify the weights of models; print their paths."""
    from dcnzoo import zoo

    for model in [zoo.find(name) for name in names]:  # finds all names before the first download
        path = zoo.download(model.id, out)
        print(path, flush=True)
        if zoo.checksum_in_name(path.name) is None:
            print(f"{path.name}: not checked: no checksum is known", file=sys.stderr)


@command.command("publish")
@click.argument("in_file", type=_options.NAME)
@click.argument("out_file", type=_options.FILE)
@option(
    "--save-keys",
    multiple=True,
    default=["meta", "state_dict"],
    metavar="KEY",
    help="Key of the checkpoint to keep, several times for several.",
)
@_options.unsafe_load
def publish_(in_file: str, out_file: Path, save_keys: tuple[str, ...], unsafe_load: bool) -> None:
    """Convert the checkpoint IN_FILE of a training to OUT_FILE for publication.

    Keeps the weights and their metadata, but not the optimizer; of the metadata, x.safetensors contains the
    names of the classes. Adds the first digits of the file's SHA-256 to its name: x.pth becomes
    x-1a2b3c4d.pth. Every download compares them.
    """
    from dcnzoo.zoo.publishing import publish

    path, removed = publish(in_file, out_file, save_keys, unsafe_load)
    print(f"removed: {', '.join(removed) or 'nothing'}")
    print(path)


def _narrow(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield a line with each name, and below it the other cells with their headings, where they need one."""
    for name, *cells in rows[1:]:
        named = zip(rows[0][1:], cells, strict=True)
        parts = [f"{head} {cell}" if "AP" in head else cell for head, cell in named if cell.strip("–")]
        yield name
        yield from textwrap.wrap(" · ".join(parts), width, initial_indent="    ", subsequent_indent="    ")


def _known(model: Model, operators: Mapping[str, str]) -> dict:
    return {
        "id": model.id,
        **dataclasses.asdict(model),
        "config": str(model.config),
        "deformable": operators,
        "here": _here(model),
    }


def _here(model: Model) -> str:
    from dcnzoo.zoo.downloads import is_downloaded

    return "weights" if is_downloaded(model) else "download" if model.weights else "no weights"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return "; ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
