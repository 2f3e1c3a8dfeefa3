"""Time a training iteration of the demo's Mask R-CNN, with and without deformable convolution."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measure import Effort, Runner, Timing, take_turns

ROOT = Path(__file__).resolve().parents[2]
ARMS = {"off": "mask-rcnn_r14_fpn_8e_shapes.py", "on": "mask-rcnn_r14-mdconv_fpn_8e_shapes.py"}
IMAGES = 64


def measure(
    threads: list[int], iterations: int, advance: Callable[[], None] = lambda: None
) -> dict[int, dict[str, Timing]]:
    """Return seconds per iteration by threads and arm: loading images, training step, averaging weights.

    The arms take turns in one process, with the same images in the same order.
    """
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            steps = {arm: _training(config, Path(folder)) for arm, config in ARMS.items()}
        runners = {
            (count, arm): Runner(step, count, "cpu") for count in threads for arm, step in steps.items()
        }
        for runner in runners.values():
            runner.warm_up()
            runner.calls = 1
        for _ in take_turns(runners, Effort(least=iterations, most=iterations)):
            advance()
    return {count: {arm: Timing.of(runners[count, arm].samples) for arm in ARMS} for count in threads}


def _training(config: str, folder: Path) -> Callable[[], None]:
    """Return a function that runs the next iteration of a training."""
    import dcnzoo.openmmlab.hooks  # noqa: F401  silences a warning of mmengine's import

    # isort: split
    from mmengine.config import Config
    from mmengine.hooks import EMAHook
    from mmengine.runner import Runner as Training

    cfg = Config.fromfile(ROOT / "configs" / "demo" / config)
    cfg.work_dir = str(folder / "work")
    cfg.log_level = "ERROR"
    cfg.randomness = {"seed": 0}
    cfg.experiment_name = Path(config).stem
    for loader in ("train", "val", "test"):
        dataset = cfg[f"{loader}_dataloader"].dataset
        dataset.data_root = f"{folder}/data/"
        dataset.shapes.update(train=IMAGES, val=1)
        cfg[f"{loader}_dataloader"].dataset = dataset
    for evaluator in ("val_evaluator", "test_evaluator"):
        cfg[evaluator].ann_file = f"{folder}/data/annotations/val.json"
    training = Training.from_cfg(cfg)
    loader = training.build_dataloader(training._train_dataloader, seed=0)
    optimizer = training.build_optim_wrapper(training.optim_wrapper)
    training.model.init_weights()
    displace(training.model)
    training.model.train()
    averaging = next(hook for hook in training.hooks if isinstance(hook, EMAHook))
    averaging.before_run(training)
    batches = _endless(loader)

    def step() -> None:
        training.model.train_step(next(batches), optim_wrapper=optimizer)
        averaging.after_train_iter(training, 0)

    return step


def displace(model: torch.nn.Module) -> None:
    """Set offsets as after some training. They start at zero, where samples lie exactly on pixels."""
    generator = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if name.endswith("conv_offset"):
            with torch.no_grad():
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))


def _endless(loader: torch.utils.data.DataLoader) -> Iterator[dict]:
    while True:
        yield from loader
