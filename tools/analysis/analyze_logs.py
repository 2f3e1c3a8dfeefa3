"""Curves and times from mmengine's logs (``work_dir/*/vis_data/scalars.json``).

python tools/analysis/analyze_logs.py plot_curve LOG... --keys loss bbox_mAP --out curves.png
python tools/analysis/analyze_logs.py cal_train_time LOG...
python tools/analysis/analyze_logs.py plot_offsets WORK_DIR --out offsets.png

LOG is such a file, or a work directory, whose logs of all resumptions are put together. plot_offsets
draws what OffsetStatisticsHook has written, WORK_DIR/offset_statistics.csv.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from dcnzoo.report.history import read_entries
from dcnzoo.report.plots import COLOURS, plot_offset_statistics
from dcnzoo.utils.errors import UserError, command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    plot = tasks.add_parser("plot_curve", help="draw what was logged")
    plot.add_argument("--keys", nargs="+", default=["bbox_mAP"], help="what (default: bbox_mAP)")
    plot.add_argument("--title", help="of the picture")
    plot.add_argument("--legend", nargs="+", help="a name for each log and key (default: LOG KEY)")
    plot.add_argument("--out", type=Path, default="curves.png", help="picture file (default: curves.png)")
    times = tasks.add_parser("cal_train_time", help="seconds per training iteration")
    times.add_argument(
        "--include-outliers", action="store_true", help="count the first entry of every epoch too"
    )
    for task in (plot, times):
        task.add_argument("json_logs", nargs="+", type=Path, metavar="LOG")
    offsets = tasks.add_parser("plot_offsets", help="draw the statistics of deformable layers")
    offsets.add_argument("work_dir", type=Path, metavar="WORK_DIR")
    offsets.add_argument(
        "--out", type=Path, default="offsets.png", help="picture file (default: offsets.png)"
    )
    return parser.parse_args()


def entries(log: Path) -> list[dict]:
    """The lines of a log, of all logs in a work directory; later ones replace those of the same step."""
    files = sorted(log.glob("*/vis_data/scalars.json")) if log.is_dir() else [log]
    found: dict[tuple[bool, bool, int], dict] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"log: expected a file or a work directory, found none at {file}")
        for entry in read_entries(file):
            # losses, OffsetStatisticsHook's figures and results of a step are entries of their own
            offsets = any(name.startswith("offsets/") for name in entry)
            found[("loss" in entry, offsets, entry["step"])] = entry
    if not found:
        raise UserError(f"{log}: expected mmengine's scalars.json, found no entries")
    return sorted(found.values(), key=lambda entry: entry["step"])


def curve(log: Path, key: str) -> tuple[list[int], list[float]]:
    """Steps and values; ``key`` may leave out what stands before a slash (coco/bbox_mAP)."""
    known: dict[str, None] = {}
    steps, values = [], []
    for entry in entries(log):
        for name, value in entry.items():
            known[name] = None
            if key in (name, name.rpartition("/")[2]):
                steps.append(entry["step"])
                values.append(value)
    if not steps:
        raise UserError(f"{log}: --keys: expected some of {', '.join(known)}, got {key}")
    return steps, values


def plot_curve(args: argparse.Namespace) -> None:
    curves = {f"{log} {key}": curve(log, key) for log in args.json_logs for key in args.keys}
    names = args.legend or list(curves)
    if len(names) != len(curves):
        raise UserError(f"--legend: expected {len(curves)} names, one for each log and key, got {len(names)}")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, (steps, values)) in enumerate(zip(names, curves.values(), strict=True)):
        marker = "o" if len(steps) < 20 else None
        axes.plot(steps, values, color=COLOURS[index % len(COLOURS)], marker=marker, ms=4, label=name)
    axes.set_xlabel("step: iteration of training, epoch (or iteration) of validation")
    axes.set_title(args.title or "")
    axes.grid(color="#e5e7eb")
    axes.legend(frameon=False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(args.out)


def plot_offsets(args: argparse.Namespace) -> None:
    file = args.work_dir / "offset_statistics.csv"
    if not file.is_file():
        raise UserError(
            f"{file}: expected a file, found none; it is written with "
            "--cfg-options default_hooks.offsets.type=OffsetStatisticsHook"
        )
    from dcnzoo.openmmlab.hooks.offset_statistics import read_statistics

    rows = list(read_statistics(file))
    if not rows:
        raise UserError(f"{file}: expected rows of OffsetStatisticsHook, found none")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot_offset_statistics(rows).savefig(args.out, dpi=110)
    print(args.out)


def times_by_epoch(log: Path, include_outliers: bool) -> Iterator[tuple[int, float]]:
    """Epochs and mean seconds per iteration. The first entry of an epoch has the start of workers in it."""
    by_epoch: dict[int, list[float]] = {}
    for entry in entries(log):
        if "loss" in entry and "time" in entry:
            by_epoch.setdefault(entry.get("epoch", 1), []).append(entry["time"])
    for epoch, times in sorted(by_epoch.items()):
        times = times if include_outliers or len(times) == 1 else times[1:]
        yield epoch, statistics.mean(times)


def cal_train_time(args: argparse.Namespace) -> None:
    for log in args.json_logs:
        times = dict(times_by_epoch(log, args.include_outliers))
        if not times:
            raise UserError(f"{log}: expected entries of training with their time, found none")
        slowest, fastest = max(times, key=times.get), min(times, key=times.get)
        print(f"{log}")
        print(f"  slowest epoch {slowest}: {times[slowest]:.4f} s/iteration")
        print(f"  fastest epoch {fastest}: {times[fastest]:.4f} s/iteration")
        print(f"  standard deviation over epochs: {statistics.pstdev(times.values()):.4f} s")
        print(f"  mean over epochs: {statistics.mean(times.values()):.4f} s/iteration")


@command
def main() -> None:
    args = parse_args()
    tasks = {"plot_curve": plot_curve, "cal_train_time": cal_train_time, "plot_offsets": plot_offsets}
    tasks[args.task](args)


if __name__ == "__main__":
    main()
