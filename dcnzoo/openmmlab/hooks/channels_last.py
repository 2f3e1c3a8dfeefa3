"""Compute in channels-last order."""

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Store the weights of 2-D convolutions in channels-last order, so that their outputs have it too.

    On a CPU, torch's convolutions are then faster (docs/performance.md). Results differ by rounding only.
    """

    priority = "VERY_HIGH"  # before hooks that copy the model, such as EMAHook

    def before_run(self, runner: Runner) -> None:
        runner.model.to(memory_format=torch.channels_last)
