"""Load a runner's checkpoint completely, or fail with the reason."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from dcnzoo.openmmlab.weights import PARTIAL_HINT, find_weights, load_state
from dcnzoo.utils.errors import UserError


class LoadCheckpointHook(Hook):
    """Load by :func:`dcnzoo.openmmlab.weights.load_state`, which converts weights and requires that all fit.

    mmengine's runners load with ``strict=False`` and only log mismatches. They call this hook after reading a
    file and before loading it; the hook loads the weights and hands the loaded state back to the runner.

    Args:
        fine_tune: if the classes of ``load_from`` differ, do not load the parameters that depend on them.
        allow_partial: load the parameters that fit.
    """

    priority = "VERY_HIGH"  # before EMAHook, which copies the weights

    def __init__(self, fine_tune: bool = False, allow_partial: bool = False) -> None:
        self.fine_tune = fine_tune
        self.allow_partial = allow_partial

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model, resume = runner.model, runner._resume
        if isinstance(model, FullyShardedDataParallel):
            runner.logger.warning("load_from: with torch's first FSDP, the weights are not checked")
            return
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        source = runner._load_from or (resume if isinstance(resume, str) else "--resume")
        meta = checkpoint.get("meta") or {}
        report = load_state(
            model,
            find_weights(checkpoint, source),
            source,
            meta=meta,
            fine_tune=self.fine_tune and not resume,
            allow_partial=self.allow_partial and not resume,
            hint="--resume requires the model of the interrupted training" if resume else PARTIAL_HINT,
        )
        if report:
            runner.logger.info(f"{source}: {report}")
        if resume and not {"epoch", "iter"} <= set(meta):
            raise UserError(
                f"--resume: expected a checkpoint of an interrupted training, got {source}, which has only "
                f"weights: --cfg-options load_from={source} starts a training from them"
            )
        if "state_dict" not in checkpoint:  # the file contains only weights
            checkpoint.clear()
            checkpoint["meta"] = meta
        checkpoint["state_dict"] = model.state_dict()
