"""Load a checkpoint into a runner: all weights must fit, and resuming requires a training's checkpoint."""

from typing import Any

from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner

from dcnzoo.openmmlab.checkpoints import class_names
from dcnzoo.openmmlab.weights import PARTIAL_HINT, find_weights, load_state, without_wrapper
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.text import few


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
        source = runner._load_from or (resume if isinstance(resume, str) else "resume")
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
        if resume:
            _require_resumable(runner, checkpoint, source)
        if "state_dict" not in checkpoint:  # the file contains only weights
            checkpoint.clear()
            checkpoint["meta"] = meta
        checkpoint["state_dict"] = model.state_dict()


def _require_resumable(runner: Runner, checkpoint: dict[str, Any], source: object) -> None:
    """Raise UserError for a file that lacks something that a training needs to continue.

    Best checkpoints lack the optimizer's state, and files of weights lack the whole state of a training.
    mmengine would train on without the optimizer's state, and begin the warm-up again.
    """
    meta = checkpoint.get("meta") or {}
    lacking = [key for key in ("epoch", "iter") if type(meta.get(key)) is not int or meta[key] < 0]
    parts = {"message_hub": True}
    if isinstance(runner, Runner):  # FlexibleRunner's strategies have other file formats
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), CheckpointHook())
        parts["optimizer"] = hook.save_optimizer
        parts["param_schedulers"] = bool(runner.param_schedulers) and hook.save_param_scheduler
    if lacking := lacking + [key for key, is_saved in parts.items() if is_saved and key not in checkpoint]:
        raise UserError(
            f"resume: expected a checkpoint of an interrupted training, got {source} without "
            f"{few(lacking)}: the setting load_from={source} starts a training from its weights"
        )
