"""``dcnzoo report``."""

from pathlib import Path
from typing import Any

import click

from dcnzoo.cli import _command, _options, _types
from dcnzoo.cli._options import option
from dcnzoo.utils.errors import show


@click.command(cls=_command.Command)
@click.argument("work_dirs", nargs=-1, required=True, metavar="WORK_DIR...", type=_types.EXISTING_FOLDER)
@option(
    "--labels", multiple=True, metavar="LABEL",
    help="Label of a folder, once per folder (default: its name). Equal labels are seeds of one setting.",
)  # fmt: skip
@option(
    "--checkpoint", type=_types.NAME, callback=_options.existing, metavar="FILE",
    help="Checkpoint of a single WORK_DIR: a file, best or last (default: the best if there is one).",
)  # fmt: skip
@option("--num-images", "images", type=click.IntRange(min=0), default=5, help="Images with detections.")
@option(
    "--evaluate", "evaluated", type=click.IntRange(min=0), default=100, metavar="N",
    help="Number of validation images for the confusion matrix and the curves.",
)  # fmt: skip
@_options.device
@option(
    "--out", type=_types.FileName(".html"), metavar="FILE",
    help="Output file (default: report.html, report_2.html, … in the first WORK_DIR).",
)  # fmt: skip
@_options.force
@_options.allow_partial
def command(
    work_dirs: tuple[Path, ...], labels: tuple[str, ...], checkpoint: str | None, out: Path | None,
    **options: Any,
) -> None:  # fmt: skip
    """Write an HTML report of one or several trainings.

    The self-contained file shows results, detections next to the ground truth, AP of each class, a confusion
    matrix, sampling points of the deformable layers and learning curves.
    dcnzoo train --report writes it after a training.

    \b
    examples:
      dcnzoo report work_dirs/mask-rcnn
      dcnzoo report work_dirs/off work_dirs/v2 --labels off --labels v2 --out compared.html
    """
    if labels and len(labels) != len(work_dirs):
        raise click.UsageError(f"--labels: expected {len(work_dirs)}, one per WORK_DIR, got {len(labels)}")
    if checkpoint is not None and len(work_dirs) > 1:
        raise click.UsageError(f"--checkpoint: expected a single WORK_DIR, got {len(work_dirs)}")
    from dcnzoo.report.report import write_report

    show(f"report: {write_report(work_dirs, out, labels, checkpoint, **options)}")
