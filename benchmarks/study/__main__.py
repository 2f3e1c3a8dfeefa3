"""Test the claims of the papers with many small trainings, paired by seed: docs/study.md.

Trains the demo's detector without deformable convolution and with each operator, in different stages, on data
with weaker and stronger deformation. Appends a row to a CSV after each training; trainings in the CSV are not
repeated, and interrupted ones continue. Then writes the page with tables and plots. The sampling points and
CPU times in study_sampling.csv and study_time.csv, and the plot of the former, are of revision 7429618.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import os
import re
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dcnzoo.models
import dcnzoo.openmmlab.datasets  # noqa: F401

# isort: split
import jinja2
import matplotlib
from matplotlib.figure import Figure
from mmengine.config import Config
from scipy.stats import ttest_1samp

from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.report.plots import COLOURS
from dcnzoo.report.report import TrainedRun, mean_and_spread
from dcnzoo.utils.files import write_bytes, write_text

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FILES = ("study.csv", "study_sampling.csv", "study_time.csv")
Rows = list[dict[str, str]]  # of a CSV
Times = Mapping[str, Sequence[float]]  # arm → CPU seconds per iteration, one value per round
ARMS = {
    "off": "mask-rcnn_r14_fpn_8e_shapes.py",
    "v1": "mask-rcnn_r14-dconv_fpn_8e_shapes.py",
    "v2": "mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
    "v3": "mask-rcnn_r14-dcnv3_fpn_8e_shapes.py",
    "v4": "mask-rcnn_r14-dcnv4_fpn_8e_shapes.py",
}
# Real images; data/bccd and data/fruits_nuts must contain images/, train.json, val.json
REAL = {"bccd": "faster-rcnn_r14_fpn_8e_bccd.py", "fruits_nuts": "mask-rcnn_r14_fpn_8e_fruits-nuts.py"}
BEND, STRETCH = 0.2, 3.0  # of the demo's data: amplitude of the bending, stretch above 1
# setting → deformation of its instances, relative to the demo's data
STRENGTHS = {"none": 0.0, "half": 0.5, "full": 1.0, "strong": 1.5}
LONGER = ("off-9-epochs", "off-10-epochs")
AIM = 0.05  # mask AP that DCNv2 was expected to gain
REGIONS = ("small", "medium", "large", "background")  # of study_sampling.csv


# Experiments


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One arm on one data set, as changes to a config."""

    study: str
    arm: str
    setting: str = "full"
    base: str = "v2"
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    seeds: int = 5

    def config(self, seed: int, folder: Path, quick: bool) -> Config:
        cfg = Config.fromfile(
            ROOT / "configs/demo" / {**ARMS, **REAL}[self.base], import_custom_modules=False
        )
        options = {"default_hooks.checkpoint.max_keep_ckpts": 1, **self.options}
        if self.setting in STRENGTHS:
            options |= self._shapes(quick)
        options |= epochs(1) if quick else {}
        # validated once, at the end
        options["train_cfg.val_interval"] = options.get("train_cfg.max_epochs", 8)
        cfg.merge_from_dict(options)
        cfg.randomness, cfg.work_dir = {"seed": seed}, str(folder)
        return cfg

    def _shapes(self, quick: bool) -> dict[str, object]:
        strength = STRENGTHS[self.setting]
        shapes = {"bend": BEND * strength, "stretch": 1 + STRETCH * strength}
        if quick:
            shapes |= {"train": 32, "val": 8}
        root = f"data/study/{self.setting}{'-quick' if quick else ''}/"
        annotations = f"{root}annotations/val.json"
        options = {"val_evaluator.ann_file": annotations, "test_evaluator.ann_file": annotations}
        for loader in ("train", "val", "test"):
            options[f"{loader}_dataloader.dataset.data_root"] = root
            for name, value in shapes.items():
                options[f"{loader}_dataloader.dataset.shapes.{name}"] = value
        return options


def epochs(number: int) -> dict[str, object]:
    ends = {"param_scheduler.1.end": number, "param_scheduler.1.T_max": number}
    return {"train_cfg.max_epochs": number, **ends}


def stages(*deformable: bool) -> dict[str, object]:
    return {"model.backbone.stage_with_dcn": deformable}


# In the order of execution: the most important results first
EXPERIMENTS = (
    Experiment("operators", "off", base="off", seeds=10),
    Experiment("operators", "v2", seeds=10),
    *(Experiment("operators", arm, base=arm) for arm in ("v1", "v3", "v4")),
    *(
        Experiment("dose", arm, setting, base=arm)
        for setting in ("none", "half", "strong")
        for arm in ("off", "v2")
    ),
    Experiment("where", "v2-c4", options=stages(False, False, True)),
    Experiment("where", "v2-c3-c4", options=stages(False, True, True)),
    # an iteration of v2 takes 1.13 times as long: 9 epochs take as long as its 8, 10 are an upper bound
    Experiment("time", "off-9-epochs", base="off", options=epochs(9)),
    Experiment("time", "off-10-epochs", base="off", options=epochs(10)),
    *(
        Experiment("real", arm, images, images, {"model.backbone.dcn": dcn})
        for images in REAL
        for arm, dcn in (("off", None), ("v2", True))
    ),
)
STUDIES = tuple(dict.fromkeys(each.study for each in EXPERIMENTS))


def read(file: Path) -> Rows:
    """Read a CSV; a missing file has no rows."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def write(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, buffer.getvalue())


# Trainings


def train_all(
    experiments: Sequence[Experiment], seeds: Sequence[int], args: argparse.Namespace, out: Path
) -> None:
    """Train what has no results yet. Arms to compare run in parallel, seed by seed."""
    done = {(row["arm"], row["setting"], int(row["seed"])) for row in read(out / FILES[0])}
    jobs = []
    for study, setting in dict.fromkeys((each.study, each.setting) for each in experiments):
        same = [each for each in experiments if (each.study, each.setting) == (study, setting)]
        for seed in seeds or range(max(each.seeds for each in same)):
            jobs += [(each, seed) for each in same if seeds or seed < each.seeds]
    jobs = [(each, seed) for each, seed in jobs if (each.arm, each.setting, seed) not in done]
    for each in {each.setting: each for each, _ in jobs}.values():
        make_data(each.config(0, args.work_dir, args.quick))
    lock = threading.Lock()

    def run(each: Experiment, seed: int) -> None:
        folder = args.work_dir / f"{each.arm}-{each.setting}-seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        each.config(seed, folder, args.quick).dump(folder / "config.py")
        command = [sys.executable, "-m", "dcnzoo", "train", folder / "config.py", "--resume"]
        with open(folder / "console.log", "ab") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, stdout=log, stderr=log, env=environment, check=True)
        with lock:
            keep(each, seed, TrainedRun.read(folder), out)

    with ThreadPoolExecutor(args.jobs) as pool:
        for future in [pool.submit(run, *job) for job in jobs]:
            future.result()


def make_data(cfg: Config) -> None:
    """Generate the data before the runs start, so that they do not generate it concurrently."""
    dataset = cfg.train_dataloader.dataset
    if "shapes" in dataset:
        make_shapes(dataset.data_root, ShapesSpec(**dataset.shapes))


def keep(each: Experiment, seed: int, trained: TrainedRun, out: Path) -> None:
    """Write a training's results; keep only the first seed's weights, for publication."""
    metrics = trained.last_validation
    row = {
        "study": each.study,
        "arm": each.arm,
        "setting": each.setting,
        "seed": seed,
        "box_ap": metrics["coco/bbox_mAP"],
        "mask_ap": metrics.get("coco/segm_mAP"),
        "seconds_per_iteration": round(trained.seconds_per_iteration, 4),
        "iterations": trained.history.iteration,
        "commit": commit(),
    }
    order = lambda row: (row["study"], row["setting"], row["arm"], int(row["seed"]))  # noqa: E731
    write(out / FILES[0], sorted([*read(out / FILES[0]), row], key=order))
    print(", ".join(map(str, row.values())), flush=True)
    if seed:
        for file in Path(trained.cfg.work_dir).glob("*.pth"):
            file.unlink()


def commit() -> str:
    described = ["git", "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty"]
    return subprocess.run(described, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


# The page


def select(rows: Rows, arm: str, setting: str = "full") -> dict[int, dict[str, str]]:
    """Return the rows of one arm on one data set, by seed."""
    return {int(row["seed"]): row for row in rows if (row["arm"], row["setting"]) == (arm, setting)}


def values(rows: Rows, arm: str, setting: str = "full", metric: str = "mask_ap") -> list[float]:
    return [float(row[metric]) for row in select(rows, arm, setting).values()]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Paired differences, their mean, and its 95% confidence interval (Student's t)."""

    differences: list[float]

    @classmethod
    def of(cls, rows: Rows, arm: str, setting="full", baseline="off", metric="mask_ap") -> Comparison | None:
        """Compare the seeds that both have, ordered by seed. None if fewer than two pairs have been run."""
        own, other = select(rows, arm, setting), select(rows, baseline, setting)
        seeds = [s for s in sorted(own.keys() & other) if own[s][metric]]
        found = [float(own[s][metric]) - float(other[s][metric]) for s in seeds]
        return cls(found) if len(found) > 1 else None

    @property
    def mean(self) -> float:
        return statistics.mean(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        return tuple(ttest_1samp(self.differences, 0).confidence_interval(0.95))

    @property
    def ahead(self) -> int:
        return sum(each > 0 for each in self.differences)

    @property
    def pairs(self) -> int:
        return len(self.differences)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:+.3f} ({low:+.3f} to {high:+.3f})"

    @property
    def with_pairs(self) -> str:
        return f"{self}, {self.ahead} of {self.pairs}"


def table(rows: Rows, times: Times, arms: Sequence[str]) -> str:
    """Return a table with one row per arm over the seeds that all have; the first arm is the baseline."""
    first, lines = arms[0], []
    seeds = set.intersection(*(set(select(rows, arm)) for arm in arms if select(rows, arm)))
    rows = [row for row in rows if int(row["seed"]) in seeds]
    for arm in arms:
        if not select(rows, arm):
            continue
        cells = [
            arm,
            *(mean_and_spread(values(rows, arm, metric=metric)) for metric in ("box_ap", "mask_ap")),
        ]
        for metric in ("box_ap", "mask_ap"):
            found = None if arm == first else Comparison.of(rows, arm, baseline=first, metric=metric)
            cells.append(found.with_pairs if found else "")
        ratio = ""
        if arm != first and arm in times and first in times:
            ratios = (own / other for own, other in zip(times[arm], times[first], strict=True))
            ratio = f"{statistics.median(ratios):.2f}×"
        lines.append([*cells, ratio])
    head = ["detector", "box AP", "mask AP", f"box AP − {first} (95% interval), pairs ahead"]
    return markdown([*head, f"mask AP − {first}", "time per iteration"], lines)


def pair_table(rows: Rows) -> str:
    off, v2 = select(rows, "off"), select(rows, "v2")
    seeds = sorted(off.keys() & v2)
    aps = {name: [float(own[s]["mask_ap"]) for s in seeds] for name, own in (("off", off), ("v2", v2))}
    lines = [[name, *(f"{value:.3f}" for value in row)] for name, row in aps.items()]
    lines.append(["difference", *(f"{b - a:+.3f}" for a, b in zip(*aps.values(), strict=True))])
    return markdown(["mask AP, seed", *map(str, seeds)], lines)


def real_table(rows: Rows) -> str:
    lines = []
    for setting, metric in (("bccd", "box_ap"), ("fruits_nuts", "box_ap"), ("fruits_nuts", "mask_ap")):
        if found := Comparison.of(rows, "v2", setting, metric=metric):
            means = [mean_and_spread(values(rows, arm, setting, metric)) for arm in ("off", "v2")]
            ahead = f"{found.ahead} of {found.pairs}"
            lines.append([setting, metric.replace("_ap", " AP"), *means, str(found), ahead])
    return markdown(["data set", "", "off", "v2", "v2 − off (95% interval)", "pairs ahead"], lines)


def dose_table(rows: Rows) -> str:
    lines = []
    for setting, strength in STRENGTHS.items():
        cells = [f"{strength:g}"]
        for metric in ("box_ap", "mask_ap"):
            if found := Comparison.of(rows, "v2", setting, metric=metric):
                cells += [
                    f"{statistics.mean(values(rows, arm, setting, metric)):.3f}" for arm in ("off", "v2")
                ]
                cells.append(found.with_pairs)
        if len(cells) > 1:
            off, v2 = (statistics.mean(values(rows, arm, setting, "box_ap")) for arm in ("off", "v2"))
            lines.append([*cells, f"{(v2 - off) / (1 - off):.1%}"])
    head = [f"{name}{what}" for name in ("box AP", "mask AP") for what in (", off", ", v2", ", v2 − off")]
    return markdown(["deformation", *head, "share of 1 − box AP that v2 removes"], lines)


def plot_dose(rows: Rows) -> Figure:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    found = {}
    for setting, strength in STRENGTHS.items():
        if each := Comparison.of(rows, "v2", setting):
            found[strength], (low, high) = each.mean, each.interval
            axes.plot([strength] * each.pairs, each.differences, "o", color=COLOURS[0], alpha=0.25, ms=4)
            bars = dict(yerr=[[each.mean - low], [high - each.mean]], fmt="o", capsize=4, lw=2)
            axes.errorbar(strength, each.mean, color=COLOURS[0], **bars)
    axes.plot(list(found), list(found.values()), color=COLOURS[0], lw=1.5)
    axes.axhline(0, color="#6b7280", lw=0.8)
    axes.set_xlabel("strength of the deformation (1: the demo's data)")
    axes.set_ylabel("mask AP, DCNv2 − plain")
    return figure


def by_layer(looked: Rows) -> dict[tuple[str, str], dict[str, Rows]]:
    """Group rows: (arm, layer) → region → one row per seed."""
    found: dict = defaultdict(lambda: defaultdict(list))
    for row in looked:
        found[row["arm"], row["layer"]][row["region"]].append(row)
    return found


def mean(rows: Rows, column: str) -> float:
    return statistics.mean(float(row[column]) for row in rows) if rows else float("nan")


def dilation_table(looked: Rows) -> str:
    lines = []
    for key, regions in by_layer(looked).items():
        means = [(mean(regions[name], "dilation"), mean(regions[name], "dilation_std")) for name in REGIONS]
        lines.append([*key, *(f"{m:.2f} ± {deviation:.2f}" for m, deviation in means)])
    return markdown(["detector", "layer", *REGIONS], lines)


def on_object_table(looked: Rows) -> str:
    names = REGIONS[:-1]
    columns = ("on_object", "on_object_regular")
    lines = [
        [*key, *(" / ".join(f"{mean(regions[name], column):.3f}" for column in columns) for name in names)]
        for key, regions in by_layer(looked).items()
    ]
    return markdown(["detector", "layer", *names], lines)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "*(not yet run)*"
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def save(file: Path, figure: Figure) -> None:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": file.stem}):  # reproducible ids
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_bytes(file, buffer.getvalue().encode())


def write_page(out: Path) -> None:
    """Write the page from the CSVs in its folder; of ``docs``, also the tables in other pages."""
    rows, looked, measured = (read(out / name) for name in FILES)
    times: dict[str, list[float]] = defaultdict(list)
    for row in measured:
        times[row["arm"]].append(float(row["cpu_seconds_per_iteration"]))
    times |= dict.fromkeys(LONGER, times["off"]) if "off" in times else {}  # the same, only more of them
    demo, pairs = table(rows, times, ["off", "v2"]), pair_table(rows)
    if out == DOCS:
        file = DOCS / "demo.md"
        text = file.read_text(encoding="utf-8")
        for name, own in (("demo", demo), ("pairs", pairs)):
            block = re.compile(rf"(<!-- study: {name} -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)
            text = block.sub(lambda match, own=own: f"{match[1]}{own}{match[2]}", text)
        write_text(file, text)
    save(out / "images/study-dose.svg", plot_dose(rows))
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).from_string(Path(__file__).with_name("study.md.jinja").read_text(encoding="utf-8"))
    text = template.render(
        done=len(rows),
        planned=sum(each.seeds for each in EXPERIMENTS),
        operators=table(rows, times, list(ARMS)),
        where=table(rows, times, ["off", "v2-c4", "v2-c3-c4", "v2"]),
        times=[table(rows, times, [longer, "v2"]) for longer in LONGER if select(rows, longer)],
        dose=dose_table(rows),
        pairs=pairs,
        real=real_table(rows),
        headline=Comparison.of(rows, "v2"),
        boxes=Comparison.of(rows, "v2", metric="box_ap"),
        same_time=Comparison.of(rows, "v2", baseline="off-9-epochs", metric="box_ap"),
        same_time_masks=Comparison.of(rows, "v2", baseline="off-9-epochs"),
        aim=AIM,
        dilation=dilation_table(looked),
        on_object=on_object_table(looked),
        commits=", ".join(sorted({row["commit"] for row in rows})),
    )
    write_text(out / "study.md", text)
    print(f"written: {out / 'study.md'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--studies", nargs="+", choices=STUDIES, default=[s for s in STUDIES if s != "real"], metavar="STUDY")
    add("--seeds", nargs="+", type=int, default=[], help="those from 100 on serve to choose settings")
    add("--jobs", type=int, default=os.cpu_count(), help="parallel trainings, one thread each")
    add("--quick", action="store_true", help="two seeds with few iterations, as a smoke test")
    add("--page-only", action="store_true", help="write the page without training")
    add("--work-dir", type=Path, default=Path("work_dirs/study"), metavar="FOLDER")
    args = parser.parse_args()
    out = args.work_dir if args.quick or min(args.seeds, default=0) >= 100 else DOCS
    if not args.page_only:
        chosen = [e for e in EXPERIMENTS if e.study in args.studies]
        train_all(chosen, args.seeds or ([0, 1] if args.quick else []), args, out)
    write_page(out)


if __name__ == "__main__":
    main()
