"""Train Faster R-CNN (ResNet-50, bfloat16) on a COCO data set, with DCNv2 in c3–c5 and without.

Times a training step of both, interleaved, on the same images; then trains the one with DCNv2 from scratch
for the rest of the time, and evaluates it. Without ``--data``, the data are generated.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import dcnzoo.openmmlab.hooks  # noqa: F401  silences a warning of mmengine's import

# isort: split
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from benchmarks.gpu.journal import Journal, results
from benchmarks.models import displace
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.openmmlab.runner import build_runner, load_config
from dcnzoo.zoo.config_writer import write_config

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "configs" / "dcnv2" / "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py"
TIMED_BATCH, BATCH = 2, 8
SHARE = 0.6  # of the remaining time for the steps; the rest loads data, compiles and evaluates


def make_config(data: Path | None, folder: Path, rehearse: bool) -> Config:
    """Write and read a config for a folder with train.json, val.json and images/, or for generated data."""
    if data is None:
        data = folder / "shapes"
        make_shapes(data, ShapesSpec(train=8, val=2) if rehearse else ShapesSpec())
        files, images = [data / "annotations" / f"{part}.json" for part in ("train", "val")], data
        parts = (images / "train", images / "val")
    else:
        files, parts = [data / "train.json", data / "val.json"], (data / "images", None)
    write_config(*files, folder / "config.py", *parts, str(MODEL), weights=False)
    cfg = load_config(str(folder / "config.py"), str(folder / "work"))
    cfg.log_level, cfg.randomness = "WARNING", {"seed": 0}
    cfg.optim_wrapper = {
        "type": "AmpOptimWrapper",
        "dtype": "bfloat16",
        "loss_scale": 1.0,
        "clip_grad": {"max_norm": 10},
        "optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
    }
    cfg.train_dataloader.sampler = {"type": "InfiniteSampler", "shuffle": True}
    cfg.train_dataloader.num_workers = 0 if rehearse else 8
    cfg.train_dataloader.persistent_workers = not rehearse
    if rehearse:
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.num_workers, loader.persistent_workers = 0, False
            for step in loader.dataset.pipeline:
                if step["type"] == "Resize":
                    step["scale"] = (96, 64)
    return cfg


def time_steps(cfg: Config, device: str, steps: int) -> dict:
    """Return the milliseconds of a training step without loading data, with dcn on and off, interleaved."""
    functions = {}
    for arm in ("off", "on"):
        changed = Config(cfg.to_dict())
        if arm == "off":
            changed.model.backbone.dcn = None
        changed.work_dir, changed.experiment_name = f"{cfg.work_dir}-{arm}", f"steps-{arm}"
        changed.train_dataloader.batch_size = TIMED_BATCH
        functions[arm] = _step(changed)
    samples: dict[str, list[float]] = {arm: [] for arm in functions}
    first = 5 if steps > 5 else 0  # the first ones compile and choose algorithms
    for number in range(first + steps):
        for arm, function in functions.items():
            _synchronize(device)
            start = time.perf_counter()
            function()
            _synchronize(device)
            if number >= first:
                samples[arm].append(1e3 * (time.perf_counter() - start))
    found = {f"{arm}_ms": statistics.median(values) for arm, values in samples.items()}
    return {**found, "ratio": found["on_ms"] / found["off_ms"], "batch": TIMED_BATCH}


def _step(cfg: Config) -> Callable[[], object]:
    training = Runner.from_cfg(cfg)
    loader = training.build_dataloader(cfg.train_dataloader, seed=0)
    batches = itertools.cycle(list(itertools.islice(loader, 4)))
    optimizer = training.build_optim_wrapper(training.optim_wrapper)
    training.model.init_weights()
    displace(training.model)
    training.model.train()
    return lambda: training.model.train_step(next(batches), optim_wrapper=optimizer)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Losses(Hook):
    """Keeps the loss of every iteration."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.values.append(float(outputs["loss"].detach()))


def train(cfg: Config, iterations: int, batch: int) -> dict:
    """Train from scratch and evaluate."""
    cfg.train_dataloader.batch_size = batch
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": iterations, "val_interval": iterations}
    warm_up = max(1, iterations // 10)
    cfg.param_scheduler = [
        {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": warm_up},
        {"type": "CosineAnnealingLR", "by_epoch": False, "begin": warm_up, "end": iterations, "eta_min": 0},
    ]
    cfg.default_hooks.checkpoint = None  # no files
    cfg.experiment_name = "training"
    runner = build_runner(cfg, training=True)
    losses = Losses()
    runner.register_hook(losses)
    start = time.monotonic()
    runner.train()
    few = max(1, iterations // 10)
    return {
        "iterations": iterations,
        "batch": batch,
        "seconds": time.monotonic() - start,
        "first_losses": statistics.mean(losses.values[:few]),
        "last_losses": statistics.mean(losses.values[-few:]),
        **_last_metrics(runner),
    }


def _last_metrics(runner: Runner) -> dict[str, float]:
    scalars = runner.message_hub.log_scalars
    return {name: scalars[name].current() for name in scalars if name.startswith("val/coco/bbox_mAP")}


def main() -> None:
    journal, args = Journal.of_command_line()
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as name:
        cfg = make_config(args.data, Path(name), args.rehearse)
        steps, batch = (1, 1) if args.rehearse else (30, BATCH)
        journal.run({"step": "time"}, lambda: time_steps(cfg, args.device, steps))
        found = results(args.file, step="time")[0][1]
        per_image = found.get("on_ms", 100.0) / 1e3 / TIMED_BATCH
        left = SHARE * (journal.end - time.monotonic())
        iterations = 2 if args.rehearse else max(20, min(3000, int(left / (per_image * batch))))
        journal.run({"step": "train"}, lambda: train(cfg, iterations, batch))
    journal.exit()


if __name__ == "__main__":
    main()
