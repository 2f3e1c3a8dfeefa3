"""Statistics of offsets and masks, of the last forward pass of each layer that predicts them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcnzoo.ops.geometry import sampling_points
from dcnzoo.ops.tracing import can_read, exporting


class OffsetStatistics(NamedTuple):
    """Statistics of the offsets of one forward pass, over batch, groups, taps and positions.

    Attributes:
        mean: mean absolute offset, in pixels.
        max: largest absolute offset, in pixels.
        outside: share of the sampling points that the offsets moved off the map, where they read zero and get
            no gradient. Points that are off the map without offsets (in the padding) do not count.
    """

    mean: float
    max: float
    outside: float


class ModulationStatistics(NamedTuple):
    """Statistics of the mask of one forward pass, over batch, groups, taps and positions.

    All are of absolute values: without an activation, as in DCNv4, a mask can be negative.

    Attributes:
        mean: mean value.
        near_zero: share of values below 0.05, whose samples contribute little.
        near_one: share of values between 0.95 and 1.05.
    """

    mean: float
    near_zero: float
    near_one: float


def tracks_offsets(module: nn.Module) -> bool:
    """Return whether a module is a layer that predicts offsets and stores their statistics.

    Such a class has the attribute ``track_offsets``. The statistics are plain attributes, neither parameters
    nor buffers, so that state dicts, DDP and TorchScript ignore them. They are on the layer's device, without
    a graph: ``_last_offsets`` and ``_last_modulation``, ``[3]``.
    """
    return hasattr(type(module), "track_offsets")


def is_recorded(layer: Any, prediction: Tensor) -> bool:
    if not layer.track_offsets or prediction.numel() == 0:
        return False
    # a compiled program stores them
    return (torch.compiler.is_compiling() and not exporting()) or can_read(prediction)


def record_offsets(layer: Any, offset: Tensor | None, size: Sequence[int]) -> None:
    """Record statistics of ``offset``, ``([N,] G·K·rank, *out)``, for sampling a map of ``size``."""
    if offset is None or not is_recorded(layer, offset):
        return
    padding, rank = layer.padding, len(size)
    if layer.padding_mode != "zeros":  # the layer samples a map that it has padded
        size, padding = [n + 2 * p for n, p in zip(size, padding, strict=True)], (0,) * rank
    geometry = (layer.kernel_size, offset.shape[-rank:], layer.stride, padding, layer.dilation)
    grid = sampling_points(None, *geometry, offset.detach().float())  # [1, 1, K, rank, *out]
    shift = offset.unflatten(-rank - 1, (-1, *grid.shape[2:4]))
    layer._last_offsets = _measure_shifts(grid, shift, size, axis=-rank - 1)


def record_shifts(layer: Any, grid: Tensor, shift: Tensor, size: Sequence[int | Tensor]) -> None:
    """Record the result of :func:`_measure_shifts` for tensors with the coordinates on the last axis."""
    if is_recorded(layer, shift):
        layer._last_offsets = _measure_shifts(grid, shift, size)


def record_modulation(layer: Any, mask: Tensor | None) -> None:
    """Record statistics of ``mask``, after its activation, in any shape."""
    if mask is None or not is_recorded(layer, mask):
        return
    factor = mask.detach().float().abs()
    near = [((factor - value).abs() < 0.05).float().mean() for value in (0, 1)]
    layer._last_modulation = torch.stack([factor.mean(), *near])


def _measure_shifts(
    grid: Tensor, shift: Tensor, size: Sequence[int | Tensor], axis: int = -1
) -> Tensor:  # [3]
    """Return the mean and largest absolute offset, and the share of points that leave the map.

    Args:
        grid: sampling points without offsets, in pixels.
        shift: offsets, in pixels.
        size: size of the map, in the order of the coordinates.
        axis: axis of the coordinates in ``grid`` and ``shift``.
    """
    grid, shift = grid.detach().float(), shift.detach().float()
    driven_out = _inside(grid, size, axis) & ~_inside(grid + shift, size, axis)
    absolute = shift.abs()
    return torch.stack([absolute.mean(), absolute.max(), driven_out.float().mean()])


def _inside(points: Tensor, size: Sequence[int | Tensor], axis: int) -> Tensor:
    axes = zip(points.unbind(axis), size, strict=True)
    return torch.stack([(at > -1) & (at < extent) for at, extent in axes]).all(dim=0)


def track_offsets(model: nn.Module, enabled: bool = True) -> None:
    """Switches statistics on or off for every layer in ``model`` that predicts offsets.

    :class:`~dcnzoo.layers.DeformRoIPoolPack`, which predicts one offset per bin of a RoI, has no statistics.
    They are off by default. If they are on, a forward pass reads the offsets and the mask a few more times
    and stores six numbers per layer, without synchronising the GPU. :func:`offset_statistics` and
    :func:`modulation_statistics` return them.
    """
    layer: Any
    for layer in filter(tracks_offsets, model.modules()):
        layer.track_offsets = enabled
        layer._last_offsets = layer._last_modulation = None


def offset_statistics(model: nn.Module) -> dict[str, OffsetStatistics]:
    """Returns the offset statistics of each layer's last forward pass, by the layer's name.

    Empty until you call :func:`track_offsets` and run the model.
    """
    return _statistics(model, "_last_offsets", OffsetStatistics)


def modulation_statistics(model: nn.Module) -> dict[str, ModulationStatistics]:
    """Like :func:`offset_statistics`, for masks. Layers without a mask (DCN v1) are not included."""
    return _statistics(model, "_last_modulation", ModulationStatistics)


def _statistics(model: nn.Module, attribute: str, kind: Any) -> dict[str, Any]:
    layers = {name: layer for name, layer in model.named_modules() if tracks_offsets(layer)}
    last = {name: getattr(layer, attribute, None) for name, layer in layers.items()}
    return {name: kind(*values.tolist()) for name, values in last.items() if values is not None}
