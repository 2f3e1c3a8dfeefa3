"""Stop training if the loss or a weight is not finite."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dcnzoo.openmmlab.checkpoints import not_finite
from dcnzoo.openmmlab.saved import last_checkpoint
from dcnzoo.utils.errors import UserError


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop at the first loss that is infinite or NaN, and before a checkpoint of such weights is written.

    The weights may be damaged by the last step before a checkpoint, whose loss was finite.

    Args:
        scaled: with a gradient scaler (``AmpOptimWrapper`` with float16), which skips such steps, only warn
            of this number (≥ 0) of consecutive steps.

    Raises:
        UserError: a loss or a weight is not finite; the message has the losses, the iteration and the images.
    """

    priority = "HIGH"  # before moving averages and checkpoints

    def __init__(self, scaled: int = 25) -> None:
        self.scaled = scaled
        self._in_a_row = 0

    def before_run(self, runner: Runner) -> None:
        """Refuse a loader without batches: mmengine would save the initial weights."""
        loop = runner._train_loop
        loader = None if isinstance(loop, dict | None) else loop.dataloader
        if loader is not None and len(loader) == 0:
            raise UserError(
                f"train_dataloader: expected at least 1 batch, got {len(loader.dataset)} pictures with "
                f"batch_size={loader.batch_size} and drop_last={loader.drop_last}"
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: Mapping | None = None
    ) -> None:
        # Like mmengine, select keys with "loss". No extra synchronisation: logging copied them to the CPU.
        losses = {k: torch.as_tensor(v).item() for k, v in (outputs or {}).items() if "loss" in k}
        broken = [f"{name} {value}" for name, value in losses.items() if not math.isfinite(value)]
        if not broken:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        got = f"{', '.join(broken)} in iteration {runner.iter + 1}, epoch {runner.epoch + 1}"
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        if scaler is not None and scaler.is_enabled() and self._in_a_row <= self.scaled:
            runner.logger.warning(f"loss: {got}; the scaler skips this step")
            return
        samples = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
        images = [path for sample in samples or () if (path := getattr(sample, "img_path", None))]
        if images:
            got += f", images {', '.join(images[:4])}"
        _stop(runner, f"loss: expected finite numbers, got {got}")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if problem := not_finite(checkpoint):
            _stop(runner, f"weights: expected finite numbers after iteration {runner.iter}, got {problem}")


def _stop(runner: Runner, problem: str) -> NoReturn:
    text = f"{problem}. Try a lower learning rate, a longer warm-up or optim_wrapper.clip_grad"
    if last_checkpoint(Path(runner.work_dir)):
        text += "; resume=True continues from the last checkpoint"
    raise UserError(text)
