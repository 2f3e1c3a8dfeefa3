"""Train Faster R-CNN (ResNet-50, bfloat16) on a COCO data set, with DCNv2 in c3–c5 and without.

Times a training step of both, interleaved, on the same images, and the share of dcnzoo's operators; then
trains the one with DCNv2 from scratch for the rest of the time, and evaluates it. Without ``--data``, the
data are generated.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.benchmark.utils.timer import timer  # waits for the GPU

from benchmarks.gpu.journal import Journal, results
from benchmarks.measure import ROOT, take_turns
from dcnzoo.data.reading import read
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.openmmlab.options import RunOptions
from dcnzoo.openmmlab.runs.build import build_runner
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, RunConfig
from dcnzoo.openmmlab.runs.start import Start
from dcnzoo.zoo.config_writer import Choice, plan
from dcnzoo.zoo.own_data import write

MODEL = ROOT / "configs" / "dcnv2" / "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py"
TIMED_BATCH, BATCH = 2, 8
SHARE = 0.6  # of the remaining time for the steps; the rest loads data, compiles and evaluates


def make_config(data: Path | None, folder: Path, rehearse: bool) -> Config:
    """Write and read a config without weights for a folder with annotated pictures, or for generated data."""
    if data is None:
        data = folder / "shapes"
        make_shapes(data, ShapesSpec(train=8, val=2) if rehearse else ShapesSpec())
    config = write(plan(read(data).split(), Choice(model=str(MODEL)), folder / "own"))
    recipe = Recipe.read(config, use=TRAINING)
    cfg = recipe.with_options(RunOptions(work_dir=folder / "work")).cfg
    cfg.log_level, cfg.randomness = "WARNING", {"seed": 0}
    cfg.load_from = None
    cfg.model.backbone.update(init_cfg=None, frozen_stages=-1, norm_eval=False)
    cfg.optim_wrapper = {
        "type": "AmpOptimWrapper",
        "dtype": "bfloat16",
        "loss_scale": 1.0,
        "clip_grad": {"max_norm": 10},
        "optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
    }
    cfg.train_dataloader.sampler = {"type": "InfiniteSampler", "shuffle": True}
    cfg.train_dataloader.update(num_workers=8, persistent_workers=True)
    if rehearse:
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.num_workers, loader.persistent_workers = 0, False
            for step in loader.dataset.pipeline:
                if step["type"] == "Resize":
                    step["scale"] = (96, 64)
    return cfg


def time_steps(cfg: Config, seconds: float) -> dict:
    """Return the milliseconds of a training step without loading data, with dcn on and off, interleaved."""
    functions = {}
    for arm in ("off", "on"):
        changed = Config(cfg.to_dict())
        if arm == "off":
            changed.model.backbone.dcn = None
        changed.work_dir, changed.experiment_name = f"{cfg.work_dir}-{arm}", f"steps-{arm}"
        changed.train_dataloader.batch_size = TIMED_BATCH
        functions[arm] = _step(changed), torch.get_num_threads()
        for _ in range(5 if seconds > 1 else 0):  # the first ones compile and choose algorithms
            functions[arm][0]()
    times = take_turns(functions, seconds, timer, rounds=5 if seconds > 1 else 1)
    milliseconds = {f"{arm}_ms": 1e3 * timed.median for arm, timed in times.items()}
    ratio = milliseconds["on_ms"] / milliseconds["off_ms"]
    return {**milliseconds, "ratio": ratio, "batch": TIMED_BATCH, **shares(functions["on"][0])}


def shares(step: Callable[[], object]) -> dict[str, float]:
    """Return the share of the GPU's time in a step of each dcnzoo operator, with all operators it calls."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            step()
    averages = profile.key_averages()
    total = sum(entry.self_device_time_total for entry in averages)
    own = {e.key: e.device_time_total for e in averages if e.key.startswith("dcnzoo::")}
    return {f"share of {name}": time / total for name, time in own.items() if time and total}


def _step(cfg: Config) -> Callable[[], object]:
    training = Runner.from_cfg(cfg)
    loader = training.build_dataloader(cfg.train_dataloader, seed=0)
    batches = itertools.cycle(list(itertools.islice(loader, 4)))
    optimizer = training.build_optim_wrapper(training.optim_wrapper)
    training.model.init_weights()
    for name, module in training.model.named_modules():
        if name.endswith("conv_offset"):  # starts at zero, where samples lie exactly on pixels
            torch.nn.init.normal_(module.bias)
    training.model.train()
    return lambda: training.model.train_step(next(batches), optim_wrapper=optimizer)


def train(cfg: Config, iterations: int, batch: int) -> dict:
    """Train from scratch and evaluate."""
    cfg.train_dataloader.batch_size = batch
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": iterations, "val_interval": iterations}
    few = max(1, iterations // 10)
    cfg.param_scheduler = [
        {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": few},
        {"type": "CosineAnnealingLR", "by_epoch": False, "begin": few, "end": iterations, "eta_min": 0},
    ]
    cfg.default_hooks.checkpoint = None  # no files
    cfg.experiment_name = "training"
    runner = build_runner(cfg, Start(), training=RunConfig(cfg))
    start = time.monotonic()
    runner.train()
    seconds, scalars = time.monotonic() - start, runner.message_hub.log_scalars
    losses = scalars["train/loss"].data[0].tolist()
    return {
        "iterations": iterations,
        "batch": batch,
        "seconds": seconds,
        "first_losses": statistics.mean(losses[:few]),
        "last_losses": statistics.mean(losses[-few:]),
        **{name: scalars[name].current() for name in scalars if name.startswith("val/coco/bbox_mAP")},
    }


def main() -> None:
    journal, args = Journal.of_command_line()
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as name:
        cfg = make_config(args.data, Path(name), args.rehearse)
        seconds, batch = (0.01, 1) if args.rehearse else (10.0, BATCH)
        journal.run({"step": "time"}, lambda: time_steps(cfg, seconds))
        timed = results(args.file, step="time")[0][1]
        per_image = timed.get("on_ms", 100.0) / 1e3 / TIMED_BATCH
        left = SHARE * (journal.end - time.monotonic())
        iterations = 2 if args.rehearse else max(20, min(3000, int(left / (per_image * batch))))
        journal.run({"step": "train"}, lambda: train(cfg, iterations, batch))
    journal.exit()


if __name__ == "__main__":
    main()
