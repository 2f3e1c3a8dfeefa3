"""The same buffers in all processes of a validation."""

from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class BroadcastBuffersHook(Hook):
    """Validate with the buffers of the first process, such as the statistics of batch norm.

    Each process updates its own statistics in training, and a checkpoint has those of the first one. With
    the others, the AP in the log would not be that of the checkpoint.
    """

    priority = "LOW"  # after EMAHook, which exchanges the weights

    def before_val_epoch(self, runner: Runner) -> None:
        for buffer in runner.model.buffers():
            broadcast(buffer)
