"""``dcnzoo reproduce``."""

from pathlib import Path
from typing import Any

import click

from dcnzoo.cli import _command, _options, _types
from dcnzoo.cli._options import option
from dcnzoo.utils.errors import show
from dcnzoo.utils.text import columns, counted


@click.command(cls=_command.Command)
@_options.model
@_options.checkpoint
@option(
    "--data-root", type=_types.EXISTING_FOLDER, metavar="FOLDER",
    help="Folder of COCO: annotations/, train2017/, val2017/ (default: the config's).",
)  # fmt: skip
@option(
    "--out",
    type=_types.FileName(".jsonl"),
    default="work_dirs/reproduce.jsonl",
    help="Append the result to it.",
)
@_options.cfg_options
@_options.work_dir
@_options.runner
@_options.unsafe_load
def command(out: Path, **options: Any) -> None:
    """Evaluate a model and compare its AP with the one in the zoo.

    MODEL is a name in the zoo (dcnzoo zoo list), a config or a work directory.

    \b
    examples:
      dcnzoo reproduce mask-rcnn_r14-mdconv_fpn_8e_shapes
      dcnzoo reproduce faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco --data-root data/coco
      dcnzoo reproduce CONFIG --checkpoint work_dirs/own/epoch_12.pth
    """
    from dcnzoo.openmmlab.runs.ranks import is_first
    from dcnzoo.zoo.testing import reproduce

    row = reproduce(out=out, **options)
    if is_first():
        _show(row)
        show(f"added to {out}")


def _show(row: dict) -> None:
    show("", f"{row['model']} on {counted(row['images'], 'images')} of {row['data']}")
    lines = [("", "measured", "listed", "difference")]
    for name, value in row["measured"].items():
        difference = row["difference"].get(name)
        signed = "–" if difference is None else f"{difference:+.1f}"
        lines.append((name, str(value), str(row["listed"].get(name, "–")), signed))
    show(*columns(lines, numbers=True))
    if row["listed"]:
        show(f"listed: {row['source']}")
