"""``dcnzoo zoo``: published models, their results and their weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcnzoo.cli import _command, _types
from dcnzoo.cli._options import option
from dcnzoo.utils.errors import UserError, note, show
from dcnzoo.utils.text import columns, counted

if TYPE_CHECKING:
    from dcnzoo.zoo import Model


AS_JSON = option("--json", "as_json", is_flag=True, help="Print all information as JSON.")


@click.group(cls=_command.Group)
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
    """List models, with WORDS only those whose names or paper contain all of them."""
    from dcnzoo import zoo

    named = zoo.search(words)
    if not named:
        raise UserError(f"{' '.join(words)}: expected words in the names or paper of one model, found none")
    models = {}
    for model in named:
        if measured and all(result.published for result in model.results):
            continue
        operators = zoo.operators_of(model)
        if operators or not dcn:
            models[model] = operators
    if not models:
        options = [name for name, is_set in (("--dcn", dcn), ("--measured", measured)) if is_set]
        raise UserError(f"{' and '.join(options)}: expected one of these models, found none")
    if as_json:
        print(json.dumps([_known(*each) for each in models.items()], indent=2))
        return
    rows: list[Sequence[str]] = [("name", "box AP", "mask AP", "deformable", "weights", "figures")]
    for model, operators in models.items():
        text = ", ".join(f"{operator} ({part})" for part, operator in operators.items())
        for source in model.sources() or [""]:
            figures = [model.metrics(source).get(name, "–") for name in ("box AP", "mask AP")]
            origin = source.partition(" (")[0]  # published or measured; `zoo info` prints the full source
            cells = (model.name, *figures, text, "yes" if model.weights else "–", origin)
            rows.append([str(cell) for cell in cells])
    show(*columns(rows))
    note(counted(len(models), "models"))


@command.command
@click.argument("name", type=_types.NAME)
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
        rows += [("" if number else key, _text(line)) for number, line in enumerate(lines)]
    show(*columns(rows))


@command.command
@click.argument("names", type=_types.NAME, nargs=-1, required=True, metavar="NAME...")
@option("--out", type=_types.FOLDER, help="Output folder (default: torch's cache).")
def download(names: tuple[str, ...], out: Path | None) -> None:
    """Download and verify the weights of models; print their paths."""
    from dcnzoo import zoo
    from dcnzoo.utils.fetch import checksum_in_name

    for model in [zoo.find(name) for name in names]:  # finds all names before the first download
        path = zoo.download(model.id, out)
        show(str(path))
        if checksum_in_name(path.name) is None:
            note(f"{path.name}: not checked: no checksum is known")


def _known(model: Model, operators: Mapping[str, str]) -> dict:
    known = {"id": model.id, **dataclasses.asdict(model)}
    return {**known, "config": str(model.config), "deformable": operators}


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return "; ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
