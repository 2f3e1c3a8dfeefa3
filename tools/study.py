"""Test the claims of the papers with many small trainings, paired by seed.

Trains the demo's detector without deformable convolution and with each operator, in different stages, on data
with weaker and stronger deformation. Appends a row to a CSV after each training; trainings in the CSV are not
repeated. Then writes the page with tables and plots. Trainings run in parallel, one thread each.
"""

import dataclasses
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click
from study_page import write_page
from study_results import RESULTS, STRENGTHS, Row, read_rows, read_time, write_rows
from study_sampling import measure_sampling
from study_time import measure_time
from trainings import ARMS, ROOT, Run, cores, locked, make_data, make_run, train

from dcnzoo.cli import _options, one_line_errors
from dcnzoo.utils.errors import user_errors

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from rich.console import Console

from dcnzoo.report.report import TrainedRun

# Real images; data/bccd and data/fruits_nuts must contain images/, train.json, val.json
REAL = {"bccd": "faster-rcnn_r14_fpn_8e_bccd.py", "fruits_nuts": "mask-rcnn_r14_fpn_8e_fruits-nuts.py"}
CONFIGS = {**ARMS, **REAL}
BEND, STRETCH = 0.2, 3.0  # of the demo's data: amplitude of the bending, stretch above 1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One arm on one data set, as changes to a config."""

    study: str
    arm: str
    setting: str = "full"
    base: str = "v2"
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    seeds: int = 5

    def run(self, seed: int, work_dir: Path, quick: bool) -> Run:
        options = {"default_hooks.checkpoint.max_keep_ckpts": 1, **self.options}
        options |= self._shapes(quick) if self.setting in STRENGTHS else {}
        options |= epochs(1) if quick else {}
        # validated once, at the end
        options["train_cfg.val_interval"] = options.get("train_cfg.max_epochs", 8)
        folder = work_dir / f"{self.arm}-{self.setting}-seed{seed}"
        return make_run(f"{self.arm}, {self.setting}, seed {seed}", CONFIGS[self.base], seed, folder, options)

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
    return {
        "train_cfg.max_epochs": number,
        "param_scheduler.1.end": number,
        "param_scheduler.1.T_max": number,
    }


def stages(*deformable: bool) -> dict[str, object]:
    return {"model.backbone.stage_with_dcn": deformable}


# In the order of execution: the most important results first
EXPERIMENTS = (
    Experiment("operators", "off", base="off", seeds=10),
    Experiment("operators", "v2", seeds=10),
    Experiment("operators", "v1", base="v1"),
    Experiment("operators", "v3", base="v3"),
    Experiment("operators", "v4", base="v4"),
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
TIMED = ("operators", "where")
STUDIES = tuple(dict.fromkeys(each.study for each in EXPERIMENTS))


@click.command(cls=_options.Command, help=__doc__)
@_options.option(
    "--studies",
    several=True,
    type=click.Choice(STUDIES),
    default=[study for study in STUDIES if study != "real"],
    show_default=True,
    help="Studies to train.",
)
@_options.option(
    "--arms", several=True, metavar="ARM...", help="Detectors to train, such as off v2 (default: all)."
)
@_options.option(
    "--seeds",
    several=True,
    type=click.IntRange(min=0),
    show_default="0 to 9 for off and v2, else 0 to 4",
    help="Seeds. Seeds from 100 on serve to choose settings; their page is written to --work-dir.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Parallel trainings (default: one per core).")
@click.option("--quick", is_flag=True, help="Run two seeds with few iterations, as a smoke test.")
@click.option("--page-only", is_flag=True, help="Write the page without training.")
@click.option("--work-dir", type=_options.FOLDER, default="work_dirs/study", show_default=True)
@one_line_errors()
def main(
    studies: tuple[str, ...],
    arms: tuple[str, ...],
    seeds: tuple[int, ...],
    jobs: int | None,
    quick: bool,
    page_only: bool,
    work_dir: Path,
) -> None:
    console = Console(highlight=False)
    folder = work_dir if quick or min(seeds, default=0) >= 100 else RESULTS.parent
    results, sampling, page = folder / "study.csv", folder / "study_sampling.csv", folder / "study.md"
    times = folder / "study_time.csv"
    if not page_only:
        selection = [
            each for each in EXPERIMENTS if each.study in studies and each.arm in (arms or [each.arm])
        ]
        chosen = (seeds or (0, 1))[:2] if quick else seeds
        train_all(selection, chosen, jobs or cores(), quick, work_dir, results, sampling, console)
        timed = {each.arm: each.run(0, work_dir, quick) for each in EXPERIMENTS if each.study in TIMED}
        if read_time(times).keys() != timed.keys():
            make_data(next(iter(timed.values())).cfg, console)
            measure_time(timed, times, rounds=1 if quick else 9)
    write_page(page, results, sampling, times, sum(each.seeds for each in EXPERIMENTS))
    console.print(f"page: {page}", soft_wrap=True)


def train_all(
    experiments: list[Experiment],
    seeds: tuple[int, ...],
    jobs: int,
    quick: bool,
    work_dir: Path,
    results: Path,
    sampling: Path,
    console: Console,
) -> None:
    """Train the experiments that have no results yet. Arms to compare run in parallel, seed by seed.

    Args:
        seeds: of each experiment; empty: each its own number.
    """
    with locked(work_dir) as lock, user_errors():
        done = {row.key for row in read_rows(results)}
        runs: dict[Path, tuple[Experiment, int, Run]] = {}
        for study, setting in dict.fromkeys((each.study, each.setting) for each in experiments):
            same = [each for each in experiments if (each.study, each.setting) == (study, setting)]
            for seed in seeds or range(max(each.seeds for each in same)):
                for each in same:
                    if (seeds or seed < each.seeds) and (each.arm, each.setting, seed) not in done:
                        run = each.run(seed, work_dir, quick)
                        runs[run.folder] = each, seed, run
        for run in {experiment.setting: run for experiment, _, run in runs.values()}.values():
            make_data(run.cfg, console)

        def keep(run: Run) -> None:
            experiment, seed, _ = runs[run.folder]
            if (experiment.arm, experiment.setting) in (("v1", "full"), ("v2", "full")):
                measure_sampling(TrainedRun.read(run.folder), experiment.arm, seed, sampling)
            write_rows(results, [*read_rows(results), row_of(experiment, seed, run)])
            if seed:  # keeps only the first seed's weights, for publication
                for file in run.folder.glob("*.pth"):
                    file.unlink()

        # runs that finished before their row was written
        for run in [run for _, _, run in runs.values() if run.is_finished()]:
            keep(run)
        train([run for _, _, run in runs.values()], min(jobs, len(runs) or 1), 1, lock, console, keep)


def row_of(experiment: Experiment, seed: int, run: Run) -> Row:
    trained = TrainedRun.read(run.folder)
    metrics = trained.last_validation
    return Row(
        experiment.study,
        experiment.arm,
        experiment.setting,
        seed,
        metrics["coco/bbox_mAP"],
        metrics.get("coco/segm_mAP"),
        round(trained.seconds_per_iteration, 4),
        run.iterations,
        commit(),
    )


def commit() -> str:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return "unknown"
    # without docs, which the trainings write
    described = [git, "describe", "--always", "--abbrev=10", "--exclude=*"]
    changed = [git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!README.md"]
    name, dirty = (
        subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        for line in (described, changed)
    )
    return f"{name}-dirty" if dirty else name


if __name__ == "__main__":
    main()
