"""Load the weights of a checkpoint into a runner: all of them must fit."""

from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner

from dcnzoo.openmmlab.checkpoints import class_names
from dcnzoo.openmmlab.weights import PARTIAL_HINT, find_weights, load_state, without_wrapper


class LoadCheckpointHook(Hook):
    """Load by :func:`dcnzoo.openmmlab.weights.load_state`, which converts weights and requires that all fit.

    mmengine's runners load with ``strict=False`` and only log mismatches. They call this hook after reading a
    file and before loading it; the hook loads the weights and hands the loaded state back to the runner.

    Args:
        fine_tune: if the number of classes in ``load_from`` differs, do not load the parameters whose shape
            depends on it.
        allow_partial: load the parameters that fit.
    """

    priority = "VERY_HIGH"  # before EMAHook, which copies the weights

    def __init__(self, fine_tune: bool = False, allow_partial: bool = False) -> None:
        self.fine_tune, self.allow_partial = fine_tune, allow_partial

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model, resume = without_wrapper(runner.model), runner._resume
        if isinstance(model, BaseTTAModel):
            model = without_wrapper(model.module)
        source = runner._load_from or "resume"
        averages = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        if resume and not averages and "ema_state_dict" in checkpoint:
            EMAHook()._swap_ema_state_dict(checkpoint)  # use the trained weights, not their average
        meta = checkpoint.get("meta") or {}
        if resume or not self.fine_tune:
            from dcnzoo.openmmlab.classes import require_order  # needs mmdet, the other hooks do not

            loader = runner.cfg.get("train_dataloader" if self.fine_tune else "test_dataloader")
            require_order(loader, class_names(meta).get("classes"), source)
        report = load_state(
            model,
            find_weights(checkpoint, source),
            source,
            settings=runner.cfg.get("model"),
            fine_tune=self.fine_tune and not resume,
            allow_partial=self.allow_partial and not resume,
            hint="resume=True requires the model of the interrupted training" if resume else PARTIAL_HINT,
        )
        if report:
            log = runner.logger.warning if self.allow_partial else runner.logger.info
            log(f"{source}: {report}")
        if "state_dict" not in checkpoint:  # the file contains only weights
            checkpoint.clear()
            checkpoint["meta"] = meta
        checkpoint["state_dict"] = model.state_dict()
