"""Compute in channels-last order."""

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.distributed.tensor import DTensor


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Store the weights of 2-D convolutions in channels-last order, so that their outputs have it too.

    On a CPU, torch's convolutions are then faster (docs/performance.md). Results differ by rounding only.
    Weights that ``FullyShardStrategy`` divides among processes keep their order, with a warning.
    """

    priority = "VERY_HIGH"  # before hooks that copy the model, such as EMAHook

    def before_run(self, runner: Runner) -> None:
        if any(isinstance(parameter, DTensor) for parameter in runner.model.parameters()):
            runner.logger.warning("ChannelsLastHook has no effect: sharded weights keep their order")
            return
        runner.model.to(memory_format=torch.channels_last)
