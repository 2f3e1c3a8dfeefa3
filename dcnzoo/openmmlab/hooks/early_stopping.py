"""End a training whose metric does not improve."""

from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class PlateauEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook``, for which an equal metric is no improvement.

    A validation without any detection, for which ``CocoMetric`` returns no metrics, is an AP of 0.
    """

    def __init__(self, monitor: str, patience: int, rule: str | None = None) -> None:
        super().__init__(monitor, rule, min_delta=1e-6, patience=patience)  # with 0, a tie is an improvement

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None) -> None:
        nothing = {self.monitor: 0.0} if self.rule == "greater" else {}
        super().after_val_epoch(runner, metrics or nothing)
