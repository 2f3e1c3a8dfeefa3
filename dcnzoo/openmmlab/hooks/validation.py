"""Hooks for validations: equal buffers in all processes, early stopping."""

from mmengine.dist import broadcast
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dcnzoo.detect.metric_names import is_undefined


@HOOKS.register_module()
class BroadcastBuffersHook(Hook):
    """Validate with the buffers of the first process, such as the statistics of batch norm.

    Each process updates its own statistics in training, and a checkpoint has those of the first process.
    Without this hook, the AP in the log would not be that of the checkpoint.
    """

    priority = "LOW"  # after EMAHook, which exchanges the weights

    def before_val_epoch(self, runner: Runner) -> None:
        for buffer in runner.model.buffers():
            broadcast(buffer)


@HOOKS.register_module()
class PlateauEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook``, but an equal metric is no improvement.

    A validation without objects, whose AP is −1, does not count.
    """

    def __init__(self, monitor: str, patience: int, rule: str | None = None) -> None:
        super().__init__(monitor, rule, min_delta=1e-6, patience=patience)  # with 0, a tie is an improvement

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not is_undefined(self.monitor, metrics.get(self.monitor)):
            super().after_val_epoch(runner, metrics)
