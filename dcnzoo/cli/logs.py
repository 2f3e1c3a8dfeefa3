"""``dcnzoo logs``, also ``tools/analysis/analyze_logs.py``."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option
from dcnzoo.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOGS = click.argument("logs", nargs=-1, required=True, metavar="LOG...", type=click.Path(path_type=Path))


def _out(default: str) -> object:
    return option("--out", type=_options.FILE, default=default, help="Output image.")


@click.group(cls=_options.Group)
def command() -> None:
    """Plot curves and print times from mmengine's logs.

    LOG is a vis_data/scalars.json of mmengine, or a work directory; the logs of a resumed training are
    joined.

    \b
    examples:
      dcnzoo logs plot_curve LOG... --keys loss bbox_mAP --out curves.png
      dcnzoo logs cal_train_time LOG...
      dcnzoo logs plot_offsets WORK_DIR --out offsets.png
    """


@command.command("plot_curve")
@LOGS
@option("--keys", several=True, default=["bbox_mAP"], metavar="KEY...", help="Logged values to plot.")
@option("--title", default="", show_default=False, help="Title of the plot.")
@option("--legend", several=True, metavar="NAME...", help="Name of each log and key (default: LOG KEY).")
@_out("curves.png")
def plot_curve(
    logs: tuple[Path, ...], keys: tuple[str, ...], title: str, legend: tuple[str, ...], out: Path
) -> None:
    """Plot logged values."""
    from dcnzoo.report.history import curve
    from dcnzoo.report.plots import plot_curves

    curves = {f"{log} {key}": curve(log, key) for log in logs for key in keys}
    names = legend or tuple(curves)
    if len(names) != len(curves):
        raise UserError(f"--legend: expected {len(curves)} names, one for each log and key, got {len(names)}")
    _save(plot_curves(dict(zip(names, curves.values(), strict=True)), title), out)


@command.command("cal_train_time")
@LOGS
@option("--include-outliers", is_flag=True, help="Include the first entry of every epoch.")
def cal_train_time(logs: tuple[Path, ...], include_outliers: bool) -> None:
    """Print the seconds per training iteration."""
    from dcnzoo.report.history import times_by_epoch

    for log in logs:
        times = times_by_epoch(log, include_outliers)
        slowest, fastest = max(times, key=times.get), min(times, key=times.get)
        print(f"{log}")
        print(f"  slowest epoch {slowest}: {times[slowest]:.4f} s/iteration")
        print(f"  fastest epoch {fastest}: {times[fastest]:.4f} s/iteration")
        print(f"  standard deviation over epochs: {statistics.pstdev(times.values()):.4f} s")
        print(f"  mean over epochs: {statistics.mean(times.values()):.4f} s/iteration")


@command.command("plot_offsets")
@click.argument("work_dir", type=_options.FOLDER)
@_out("offsets.png")
def plot_offsets(work_dir: Path, out: Path) -> None:
    """Plot the statistics of deformable layers that OffsetStatisticsHook wrote."""
    import dcnzoo.openmmlab  # noqa: F401  before mmengine
    from dcnzoo.openmmlab.hooks.offset_statistics import read_statistics
    from dcnzoo.report.plots import plot_offset_statistics

    file = work_dir / "offset_statistics.csv"
    if not file.is_file():
        raise UserError(
            f"{file}: expected a file, found none; to write it, train with "
            "--cfg-options default_hooks.offsets.type=OffsetStatisticsHook"
        )
    rows = list(read_statistics(file))
    if not rows:
        raise UserError(f"{file}: expected rows of OffsetStatisticsHook, found none")
    _save(plot_offset_statistics(rows), out, dpi=110)


def _save(figure: Figure, out: Path, **options: int) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, **options)
    print(out)
