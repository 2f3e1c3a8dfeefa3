"""Compute in channels-last order."""

import torch
from mmcv.cnn.bricks import wrappers
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from dcnzoo import layers

# Other layers may call weight.view, as those with standardized, normalized or masked weights do.
PLAIN = (nn.Conv2d, nn.ConvTranspose2d, wrappers.Conv2d, wrappers.ConvTranspose2d, layers.OffsetConv2d)
DEFORMABLE = (DeformConv2d, ModulatedDeformConv2d, layers.DeformConv2d, layers.DeformConvTranspose2d)


def to_channels_last(model: nn.Module) -> None:
    """Store the weights of 2-D convolutions in channels-last order, so that their outputs have it too.

    ``model.to(memory_format=…)`` is not used: some detectors override ``to`` (knowledge distillation).
    """
    for module in model.modules():
        if type(module) in PLAIN or isinstance(module, DEFORMABLE):
            for weight in module.parameters(recurse=False):
                if weight.ndim == 4:
                    weight.data = weight.data.contiguous(memory_format=torch.channels_last)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Compute in channels-last order, see :func:`to_channels_last`.

    On a CPU, torch's convolutions are then faster (docs/performance.md). Results differ by rounding only.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        """Convert after the weights are initialised: random numbers are assigned in memory order."""
        to_channels_last(runner.model)
        for average in filter(None, (getattr(hook, "ema_model", None) for hook in runner.hooks)):
            to_channels_last(average)
            if average.update_buffers:  # mmengine's state dict still has tensors with the old memory
                average.avg_parameters = average.module.state_dict()

    before_val = before_test = before_train
