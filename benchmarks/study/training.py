"""The trainings of plan.md in the order of execution, their configs, and the table of results."""

import dataclasses
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from filelock import FileLock
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor

from benchmarks.measure import ROOT, append_row, read_rows
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.openmmlab.models import DCNv2
from dcnzoo.openmmlab.runs.build import build_runner
from dcnzoo.openmmlab.runs.recipe import RunConfig
from dcnzoo.openmmlab.runs.start import Start
from dcnzoo.utils.errors import UserError

Row = dict[str, str]  # of the CSV
RESULTS = Path(__file__).with_name("results.csv")
COLUMNS = (
    *("stage", "setting", "arm", "data_seed", "model_seed", "rate", "epoch", "split", "box_ap", "mask_ap"),
    *("cpu_seconds", "parameters", "weights", "commit", "machine", "torch", "date"),
)
# arm → changes to the backbone
ARMS: dict[str, dict[str, object]] = {
    "plain": {},
    "dilated": {"dilations": (2, 2, 2)},
    "wider": {"base_channels": 24, "stem_channels": 24},
    "modulation": {"dcn": {"type": "OnlyModulation", "deform_groups": 1}},
    "v1": {"dcn": {"type": "OnlyOffsets", "deform_groups": 1}},
    "v2": {"dcn": {"type": "DCNv2", "deform_groups": 1}},
}
RATES = (0.75e-3, 1.5e-3, 3e-3)
SIZE = 96  # pixels, of the generated images
TEST_SEED = 300_000  # plus the seed of the run; 100,000 gave the test sets of the withdrawn rows
DEFORMATION = {
    "shapes-0": {"bend": 0.0, "stretch": 1.0},
    "shapes": {"bend": 0.2, "stretch": 4.0},
    "shapes-1.5": {"bend": 0.3, "stretch": 5.5},
}
TIMED = "bccd-equal-time"  # the setting of equal_time.md
TIMED_RATES = (0.375e-3, 0.75e-3, 1.5e-3, 3e-3, 6e-3)
TIMED_SIZE = (160, 120)  # pixels
BUDGET = 40.0  # CPU seconds of the epochs of a training


@dataclasses.dataclass(frozen=True)
class Run:
    """One training."""

    stage: str  # search (of the learning rate), main or secondary
    setting: str  # a key of DEFORMATION, bccd or TIMED
    arm: str
    seed: int  # of the model and, with generated images, of the data
    rate: float | None = None  # learning rate; None: the best one of the search

    @property
    def epochs(self) -> int | None:
        """The length of the training; None: until its CPU time is up."""
        if self.setting == TIMED:
            return None
        return 8 if self.stage == "search" else 16 if self.setting == "bccd" else 32

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.setting}-{self.arm}-{self.seed}" + (f"-{self.rate}" if self.rate else "")

    @property
    def columns(self) -> dict[str, object]:
        generated = self.setting in DEFORMATION
        seeds = {"data_seed": self.seed if generated else 0, "model_seed": self.seed}
        return {"stage": self.stage, "setting": self.setting, "arm": self.arm, **seeds}


PAIR, OTHERS = ("v2", "plain"), ("shapes-0", "shapes-1.5")
PLAN = (
    *(Run("search", "shapes", arm, 9100, rate) for arm in reversed(ARMS) for rate in RATES),
    *(Run("main", "shapes", arm, seed) for seed in range(5) for arm in reversed(ARMS)),
    *(Run("secondary", "bccd", arm, seed) for seed in range(10) for arm in PAIR),
    *(Run("secondary", name, arm, seed) for seed in range(5) for name in OTHERS for arm in PAIR),
    *(Run("main", "shapes", arm, seed) for seed in range(5, 10) for arm in reversed(ARMS)),
    *(Run("search", TIMED, arm, 9100, rate) for rate in TIMED_RATES for arm in PAIR),
    *(Run("main", TIMED, arm, seed) for seed in range(12) for arm in (PAIR, PAIR[::-1])[seed % 2]),
)


def read() -> list[Row]:
    """Read the results without a line that is still being written."""
    return [row for row in read_rows(RESULTS) if row["torch"]]


def append(row: dict[str, object]) -> None:
    """Write a row with the time, UTC. Rows before 2026-11-26 have none."""
    append_row(RESULTS, COLUMNS, {**row, "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime())})


def average(row: Row) -> float:
    """Return the primary endpoint: the mean of box AP and mask AP, or box AP on data without masks."""
    return statistics.mean(float(row[name]) for name in ("box_ap", "mask_ap") if row[name])


def select(rows: Iterable[Row], **columns: object) -> list[Row]:
    return [row for row in rows if all(row[name] == str(value) for name, value in columns.items())]


def result(rows: list[Row], run: Run) -> Row | None:
    """Return the last row of a complete training; None if it has not been completed."""
    fixed = {"split": "val", "rate": run.rate} if run.stage == "search" else {"split": "test"}
    if run.epochs:
        fixed["epoch"] = run.epochs
    final = select(rows, **run.columns, **fixed)
    return final[-1] if final else None


def pending(runs: Iterable[Run], rows: list[Row]) -> list[Run]:
    return [run for run in runs if result(rows, run) is None]


def best_rate(rows: list[Row], arm: str, setting: str = "shapes") -> float | None:
    """Return the rate with the best endpoint in the search; None before all rates have been tried.

    With ``TIMED``, both arms must have a best rate.

    Raises:
        RuntimeError: a best rate is the lowest or highest of ``TIMED_RATES``, which have to be extended.
    """
    best = {}
    for each in PAIR if setting == TIMED else (arm,):
        runs = [run for run in PLAN if (run.stage, run.setting, run.arm) == ("search", setting, each)]
        trials = {run.rate: result(rows, run) for run in runs}
        if not all(trials.values()):
            return None
        rate = best[each] = max(trials, key=lambda rate: average(trials[rate]))
        if setting == TIMED and rate in (min(trials), max(trials)):
            raise RuntimeError(f"TIMED_RATES: expected a best rate between others, got {rate} for {each}")
    return best[arm]


@MODELS.register_module()
class OnlyModulation(DCNv2):
    """DCNv2 with offsets held at zero, with the same parameters and operations."""

    def predict(self, input: Tensor) -> tuple[Tensor | None, Tensor | None]:
        offset, mask = super().predict(input)
        return torch.zeros_like(offset), mask


@MODELS.register_module()
class OnlyOffsets(DCNv2):
    """DCNv2 without modulation, that is, DCN v1 from the same initial weights."""

    def predict(self, input: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return super().predict(input)[0], None


class RecordHook(Hook):
    """Sum up the CPU seconds of the training epochs; write a row after each validation and after the test.

    Args:
        budget: the training ends after the epoch that is nearest to this number of seconds.
    """

    priority = "LOW"  # after the average of weights, before the checkpoint of the last epoch

    def __init__(self, columns: dict[str, object], budget: float | None) -> None:
        self._columns, self._budget, self._seconds = columns, budget, 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        self._start = time.process_time()

    def after_train_epoch(self, runner: Runner) -> None:
        seconds = time.process_time() - self._start
        self._seconds += seconds
        if self._budget is not None and self._seconds + seconds / 2 > self._budget:
            runner.train_loop._max_epochs = runner.epoch + 1

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.record(runner, runner.epoch, "val", metrics or {})

    def record(self, runner: Runner, epoch: int, split: str, metrics: dict[str, float]) -> None:
        row = {
            "epoch": epoch,
            "split": split,
            "box_ap": metrics["coco/bbox_mAP"],
            "mask_ap": metrics.get("coco/segm_mAP"),
            "cpu_seconds": round(self._seconds, 2),
            "parameters": sum(each.numel() for each in runner.model.parameters()),
        }
        append({**self._columns, **row})


def make_data(run: Run, folder: Path) -> None:
    """Generate the images, unless they exist. A test set has a seed of its own and shares no image."""
    shapes = {"size": SIZE, "max_radius": 40.0, "max_instances": 3, **DEFORMATION[run.setting]}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # the arms of a seed start together
        make_shapes(folder / "train", ShapesSpec(**shapes, train=640, val=128, seed=run.seed))
        make_shapes(folder / "test", ShapesSpec(**shapes, train=1, val=384, seed=TEST_SEED + run.seed))


def config(run: Run, rate: float, work_dir: Path, data: Path | None) -> Config:
    generated = run.setting in DEFORMATION
    name = "mask-rcnn_r14_fpn_8e_shapes.py" if generated else "faster-rcnn_r14_fpn_8e_bccd.py"
    cfg = Config.fromfile(ROOT / "configs/demo" / name, import_custom_modules=False)
    cfg.randomness, cfg.launcher, cfg.log_level = {"seed": run.seed}, "none", "ERROR"
    cfg.work_dir = str(work_dir / run.name)
    cfg.model.backbone.update(ARMS[run.arm])
    cfg.model.neck.in_channels = [channels * cfg.model.backbone.base_channels for channels in (8, 16)]
    if run.setting != TIMED:
        cfg.model.test_cfg.rcnn.max_per_img = 20
    cfg.optim_wrapper.optimizer.lr = rate
    cfg.train_cfg.update(max_epochs=run.epochs or 1000, val_interval=4 if run.epochs else 1000)
    # after the warm-up, a constant rate; the average of the last weights is evaluated
    cfg.param_scheduler = [dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=100)]
    cfg.custom_hooks[0].update(ema_type="MomentumAnnealingEMA", momentum=0.005, gamma=10)  # EMAHook
    cfg.default_hooks.checkpoint.update(
        interval=run.epochs or -1, save_optimizer=False, save_param_scheduler=False
    )
    cfg.default_hooks.pop("progress")
    for split in ("train", "val", "test"):
        dataset = cfg[f"{split}_dataloader"].dataset
        if run.setting == TIMED:
            dataset.ann_file = f"{split}.json"  # the first plan has other files: its test images are val.json
        if generated:
            data = work_dir / "data" / f"{run.setting}-{run.seed}" / ("test" if split == "test" else "train")
            make_data(run, data.parent)
            del dataset.shapes
        if run.setting != "bccd":
            resize = next(step for step in dataset.pipeline if step.type == "Resize")
            resize.scale = (SIZE, SIZE) if generated else TIMED_SIZE
        dataset.data_root = f"{data}/"
        if split != "train":
            cfg[f"{split}_evaluator"].ann_file = f"{data}/{dataset.ann_file}"
    return cfg


def train(run: Run, rate: float, work_dir: Path, data: Path | None, columns: dict[str, object]) -> None:
    """Train and, except in the search, evaluate on the test set once. A diverged training has AP 0."""
    torch.set_num_threads(1)
    split = "val" if run.stage == "search" else "test"
    cfg = config(run, rate, work_dir, data)
    runner = build_runner(cfg, Start(), training=RunConfig(cfg))
    hook = RecordHook({**columns, **run.columns, "rate": rate}, None if run.epochs else BUDGET)
    runner.register_hook(hook)
    try:
        runner.train()
        if split == "test":
            hook.record(runner, runner.epoch, "test", runner.test())
    except UserError as error:  # FiniteLossHook
        print(f"{run.name}: {error}", flush=True)
        hook.record(runner, run.epochs or runner.epoch, split, {"coco/bbox_mAP": 0.0, "coco/segm_mAP": 0.0})
