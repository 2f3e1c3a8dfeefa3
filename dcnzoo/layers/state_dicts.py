"""State dicts of other packages' layers, in the layout of :class:`dcnzoo.layers.PackedDeformConv2d`."""

from typing import Any

import torch
from torch import Tensor

from dcnzoo.layers.masks import MaskSoftmax, ScaledMask

MMCVS_VERSION = 2  # the version of mmcv's packed layers in the metadata of state dicts
# names of the predicting convolutions, offsets first, in dcnzoo, mmcv, DCNv2, tvdcn, plain PyTorch
PREDICTORS = ["offset_generator", "conv_offset", "conv_offset_mask", "offset_conv"]
PREDICTORS += ["mask_generator", "conv_mask", "modulator_conv", "m_conv"]

# the factor of the sigmoid that other packages apply to the output of these convolutions
_SIGMOIDS = {"conv_offset_mask": 1.0, "m_conv": 1.0, "mask_generator": 2.0, "modulator_conv": 2.0}


def convert(layer: Any, state_dict: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
    """Convert the entries of another layer to those of a packed layer, in place.

    Args:
        metadata: torch's metadata of the saved layer.
    """
    # the main convolution's name in the two plain-PyTorch layers that many projects copy
    main = "conv" if f"{prefix}p_conv.weight" in state_dict else "regular_conv"
    for name in ("weight", "bias"):
        if f"{prefix}{main}.{name}" in state_dict:
            state_dict[f"{prefix}{name}"] = state_dict.pop(f"{prefix}{main}.{name}")
        if f"{prefix}p_conv.{name}" in state_dict:  # predicts y of all taps, then x of all taps: interleave
            y, x = state_dict.pop(f"{prefix}p_conv.{name}").chunk(2)
            state_dict[f"{prefix}offset_conv.{name}"] = torch.stack([y, x], 1).flatten(0, 1)
    if isinstance(layer.mask_activation, ScaledMask):
        _convert_scale(layer.mask_activation, state_dict, prefix, metadata)
    names = [f"{prefix}{name}" for name in PREDICTORS if f"{prefix}{name}.weight" in state_dict]
    if layer.conv_offset is not None and names and names != [f"{prefix}conv_offset"]:
        _join_predictors(layer, state_dict, names, f"{prefix}conv_offset")


def _convert_scale(
    activation: ScaledMask, state_dict: dict[str, Tensor], prefix: str, metadata: dict[str, Any]
) -> None:
    """Add the scale of the saved mask, if it is known; without a buffer for it, scale the weight."""
    old, key = f"{prefix}mask_activation.scale", f"{prefix}mask_activation.{activation.key}"
    weight = state_dict.get(f"{prefix}weight")
    if weight is None:
        return
    if key not in state_dict:
        names = [name for name in _SIGMOIDS if f"{prefix}{name}.weight" in state_dict]
        scale: Any
        if "mask_scale" in metadata:  # dcnzoo 0.2.0
            scale = metadata["mask_scale"]
        elif old in state_dict:
            scale = state_dict[old]
        elif metadata.get("version") == MMCVS_VERSION or (names and isinstance(activation, MaskSoftmax)):
            scale = 1.0
        elif names:
            scale = _SIGMOIDS[names[0]]
        else:
            return  # torch then reports a missing key if the layer has the buffer
        # these files do not name the activation, but to_deformable's sigmoid has 2, its softmax the taps
        if isinstance(activation, MaskSoftmax) and scale == 2 != activation.taps:
            return
        state_dict.pop(old, None)
        state_dict[key] = torch.as_tensor(scale).to(weight)
    if not [*activation.buffers()]:
        state_dict[f"{prefix}weight"] = weight * state_dict.pop(key).to(weight)


def _join_predictors(layer: Any, state_dict: dict[str, Tensor], names: list[str], joined: str) -> None:
    """Join the predicting convolutions, which may have no bias or several groups, into one."""
    weights = [state_dict.pop(f"{name}.weight") for name in names]
    weights = [  # only tvdcn's convolutions have groups: in others, a wrong width is an error
        _ungrouped(weight, layer.in_channels) if name.endswith("_generator") else weight
        for name, weight in zip(names, weights, strict=True)
    ]
    biases = [state_dict.pop(f"{name}.bias") for name in names if f"{name}.bias" in state_dict]
    state_dict[f"{joined}.weight"] = torch.cat(weights)
    # if no convolution has a bias, as in tvdcn's layers with bias=False, use zeros
    if not biases and layer.conv_offset.bias is not None:
        biases = [weight.new_zeros(len(weight)) for weight in weights]
    if len(biases) == len(names):  # if only some have a bias, torch reports a missing key
        state_dict[f"{joined}.bias"] = torch.cat(biases)


def _ungrouped(weight: Tensor, channels: int) -> Tensor:  # [O, C / groups, *kernel] -> [O, C, *kernel]
    """Return the full weight that computes the same as a grouped one: it has zeros between groups."""
    width = weight.shape[1]
    groups, rest = divmod(channels, width)
    if groups < 2 or rest:
        return weight
    full = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    for group, (rows, block) in enumerate(zip(full.chunk(groups), weight.chunk(groups), strict=True)):
        rows[:, group * width : (group + 1) * width] = block
    return full
