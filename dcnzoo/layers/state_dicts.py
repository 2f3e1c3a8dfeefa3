"""State dicts of other packages' layers, in the layout of :class:`dcnzoo.layers.PackedDeformConv2d`."""

from typing import Any

import torch
from torch import Tensor

MMCVS_VERSION = 2  # of mmcv's packed layers, in the metadata of state dicts
# names of the convolutions that predict, those of offsets first: dcnzoo, mmcv, DCNv2, tvdcn, plain PyTorch
PREDICTORS = ["offset_generator", "conv_offset", "conv_offset_mask", "offset_conv"]
PREDICTORS += ["mask_generator", "conv_mask", "modulator_conv", "m_conv"]

UNSCALED = ("conv_offset_mask", "m_conv")  # predictors of masks that are a sigmoid alone


def convert(
    layer: Any, state_dict: dict[str, Tensor], prefix: str, metadata: dict[str, Any], mask_scale: float | None
) -> None:
    """Change the entries of a layer to those of a packed one, in place.

    Args:
        metadata: torch's metadata of the saved layer.
        mask_scale: factor of the layer's sigmoid. If the saved one had another, so does the weight. None: its
            mask is no sigmoid.
    """
    is_mmcvs = metadata.get("version") == MMCVS_VERSION != layer._version
    is_unscaled = is_mmcvs or any(f"{prefix}{name}.weight" in state_dict for name in UNSCALED)
    factor = 1.0
    if mask_scale:
        factor = metadata.get("mask_scale", 1.0 if is_unscaled else mask_scale) / mask_scale
    # of the two layers in plain PyTorch that many projects copy
    main = "conv" if f"{prefix}p_conv.weight" in state_dict else "regular_conv"
    for name in ("weight", "bias"):
        if f"{prefix}{main}.{name}" in state_dict:
            state_dict[f"{prefix}{name}"] = state_dict.pop(f"{prefix}{main}.{name}")
        if f"{prefix}p_conv.{name}" in state_dict:  # the y of all taps, then the x
            y, x = state_dict.pop(f"{prefix}p_conv.{name}").chunk(2)
            state_dict[f"{prefix}offset_conv.{name}"] = torch.stack([y, x], 1).flatten(0, 1)
    if factor != 1 and f"{prefix}weight" in state_dict:
        state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] * factor
    names = [f"{prefix}{name}" for name in PREDICTORS if f"{prefix}{name}.weight" in state_dict]
    if layer.conv_offset is not None and names and names != [f"{prefix}conv_offset"]:
        _join_predictors(layer, state_dict, names, f"{prefix}conv_offset")


def _join_predictors(layer: Any, state_dict: dict[str, Tensor], names: list[str], joined: str) -> None:
    """Join convolutions, perhaps without bias or in groups, into one."""
    weights = [state_dict.pop(f"{name}.weight") for name in names]
    weights = [  # only tvdcn's have groups: another width is an error
        _ungrouped(weight, layer.in_channels) if name.endswith("_generator") else weight
        for name, weight in zip(names, weights, strict=True)
    ]
    biases = [state_dict.pop(f"{name}.bias") for name in names if f"{name}.bias" in state_dict]
    state_dict[f"{joined}.weight"] = torch.cat(weights)
    # a layout without them, such as tvdcn's layers with bias=False
    if not biases and layer.conv_offset.bias is not None:
        biases = [weight.new_zeros(len(weight)) for weight in weights]
    if len(biases) == len(names):  # otherwise, the bias is a missing key
        state_dict[f"{joined}.bias"] = torch.cat(biases)


def _ungrouped(weight: Tensor, channels: int) -> Tensor:  # [O, C / groups, *kernel] -> [O, C, *kernel]
    """The full weight that equals a grouped one: zeros between the groups."""
    width = weight.shape[1]
    groups, rest = divmod(channels, width)
    if groups < 2 or rest:
        return weight
    full = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    for group, (rows, block) in enumerate(zip(full.chunk(groups), weight.chunk(groups), strict=True)):
        rows[:, group * width : (group + 1) * width] = block
    return full
