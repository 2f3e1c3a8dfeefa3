"""Compute in channels-last order."""

import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

CONTIGUOUS = (ConvAWS2d, ConvWS2d)  # their forward calls weight.view


def to_channels_last(model: nn.Module) -> None:
    """Store the weights of 2-D convolutions in channels-last order, so that their outputs have it too.

    ``model.to(memory_format=…)`` is not used: some detectors override ``to`` (knowledge distillation).
    """
    for module in model.modules():
        for weight in () if isinstance(module, CONTIGUOUS) else module.parameters(recurse=False):
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Compute in channels-last order, see :func:`to_channels_last`.

    On a CPU, torch's convolutions are then faster (docs/performance.md). Results differ by rounding only.
    """

    priority = "VERY_HIGH"  # before hooks that copy the model, such as EMAHook

    def before_run(self, runner: Runner) -> None:
        to_channels_last(runner.model)
