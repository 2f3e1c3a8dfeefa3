"""What every layer that predicts its own offsets needs: their convolution, bound, statistics, learning rate.

No ``from __future__ import annotations`` here: TorchScript reads the annotations themselves.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from dcnzoo.ops.geometry import sampling_points


class _ZeroInit(nn.Module):
    """A layer that starts at zero."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


# mmengine initialises layers by name, layer='Conv2d', which it compares with a module's class and
# its direct bases. With one class in between, a Kaiming initialisation of the parent passes by, while
# everything that asks isinstance(…, nn.Conv2d), like mmengine's dcn_offset_lr_mult, still knows it.
class _ZeroConv1d(_ZeroInit, nn.Conv1d):
    pass


class _ZeroConv2d(_ZeroInit, nn.Conv2d):
    pass


class _ZeroConv3d(_ZeroInit, nn.Conv3d):
    pass


class _ZeroLinear(_ZeroInit, nn.Linear):
    pass


class OffsetConv1d(_ZeroConv1d):
    """As :class:`OffsetConv2d`, for 1-D."""


class OffsetConv2d(_ZeroConv2d):
    """Predicts offsets or masks: an ``nn.Conv2d`` that starts at zero.

    It stays there until trained, also through the ``init_weights()`` of an OpenMMLab model.
    """


class OffsetConv3d(_ZeroConv3d):
    """As :class:`OffsetConv2d`, for 3-D."""


class OffsetLinear(_ZeroLinear):
    """As :class:`OffsetConv2d`, an ``nn.Linear``: of maps whose channels come last."""


OFFSET_CONVS: dict[int, type[_ZeroConv1d | _ZeroConv2d | _ZeroConv3d]] = {
    1: OffsetConv1d,
    2: OffsetConv2d,
    3: OffsetConv3d,
}
OFFSET_PREDICTORS = (*OFFSET_CONVS.values(), OffsetLinear)


def check_offset_limit(owner: str, limit: float | None) -> float | None:
    """``limit`` as a float, or the error of the layer ``owner``."""
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < math.inf:
        raise ValueError(
            f"{owner}: offset_limit: expected a positive number of pixels or None, got {limit!r}"
        )
    return float(limit)


def limit_offset(offset: Tensor, limit: float) -> Tensor:
    """Keeps every offset within ±``limit`` pixels, smoothly: ``limit · tanh(offset / limit)``.

    Small offsets pass as they are (slope 1 at 0); large ones level off, and an infinite one becomes
    ``limit``: whatever the prediction, samples stay near their place, where they see something. A
    prediction far beyond the limit gets hardly a gradient and stays at it.
    """
    return limit * torch.tanh(offset / limit)


def rename_legacy_offsets(state_dict: dict[str, Tensor], prefix: str, packs: Sequence[str]) -> None:
    """Renames ``conv2_offset.weight``, as old checkpoints say, ``conv2.conv_offset.weight``.

    Args:
        state_dict: changed in place.
        prefix: of the module being loaded.
        packs: names of the DCN layers in that module ('' for itself).
    """
    for pack in packs:
        for parameter in ("weight", "bias"):
            old = f"{prefix}{pack}".removesuffix(".") + f"_offset.{parameter}"
            new = f"{prefix}{pack}".removesuffix(".") + f".conv_offset.{parameter}"
            new = new.removeprefix(".")
            if old in state_dict and new not in state_dict:
                state_dict[new] = state_dict.pop(old)


class OffsetStatistics(NamedTuple):
    """Of the offsets of one forward pass, over batch, groups, taps and positions.

    Attributes:
        mean: of the absolute offsets, in pixels.
        max: of the absolute offsets, in pixels.
        outside: share of the sampling points that their offsets drove off the map, where they read zero
            and learn nothing. Points in the padding of an ordinary convolution do not count.
    """

    mean: float
    max: float
    outside: float


class ModulationStatistics(NamedTuple):
    """Of the factors that weigh the samples in one forward pass, over batch, groups, taps and positions.

    Attributes:
        mean: of the absolute factors; only DCNv4's have a sign.
        near_zero: share of them below 0.05, whose samples hardly count.
        near_one: share of them between 0.95 and 1.05.
    """

    mean: float
    near_zero: float
    near_one: float


class TracksOffsets:
    """Mixin of layers that predict offsets: keeps a few figures of the last ones when asked to.

    Plain attributes, neither parameters nor buffers: state dicts, DDP and TorchScript do not see them.
    """

    if TYPE_CHECKING:  # of the layer; TorchScript must not see these
        kernel_size: Any
        stride: Any
        padding: Any
        dilation: Any

    track_offsets = False
    # on the layer's device, without a graph
    _last_offsets: Tensor | None = None  # [3]
    _last_modulation: Tensor | None = None  # [3]

    def _records(self, prediction: Tensor) -> bool:
        return (
            self.track_offsets
            and not isinstance(prediction, Proxy)
            and prediction.numel() > 0
            and not torch.compiler.is_exporting()
        )

    def _record_offsets(self, offset: Tensor | None, size: Sequence[int]) -> None:
        """``offset``: ``(N, G·K·rank, *out)``; ``size``: of the map that the points lie in."""
        if offset is None or not self._records(offset):
            return
        offset = offset.detach().float()
        grid = sampling_points(
            None, self.kernel_size, offset.shape[2:], self.stride, self.padding, self.dilation, offset
        )  # [1, 1, K, rank, *out]
        self._record_shifts(grid, offset.unflatten(1, (-1, *grid.shape[2:4])), size, axis=3)

    def _record_shifts(
        self, grid: Tensor, shift: Tensor, size: Sequence[int | Tensor], axis: int = -1
    ) -> None:
        """``grid``: where the points lie without their ``shift``, both in pixels; ``axis``: that of the
        coordinates, which come in the order of ``size``.
        """
        if not self._records(shift):
            return
        grid, shift = grid.detach().float(), shift.detach().float()
        driven_out = _inside(grid, size, axis) & ~_inside(grid + shift, size, axis)
        absolute = shift.abs()
        self._last_offsets = torch.stack([absolute.mean(), absolute.max(), driven_out.float().mean()])

    def _record_modulation(self, mask: Tensor | None) -> None:
        """``mask``: the factors as they weigh the samples, in any shape."""
        if mask is None or not self._records(mask):
            return
        factor = mask.detach().float().abs()
        near = [((factor - value).abs() < 0.05).float().mean() for value in (0, 1)]
        self._last_modulation = torch.stack([factor.mean(), *near])


def _inside(points: Tensor, size: Sequence[int | Tensor], axis: int) -> Tensor:
    axes = zip(points.unbind(axis), size, strict=True)
    return torch.stack([(at > -1) & (at < extent) for at, extent in axes]).all(dim=0)


def track_offsets(model: nn.Module, enabled: bool = True) -> None:
    """Lets every deformable layer in ``model`` that predicts its offsets keep their statistics, or stop it.

    Off by default. On, a forward pass reads the offsets and the mask a few times more and keeps six
    numbers, without synchronising a GPU; :func:`offset_statistics` and :func:`modulation_statistics` fetch
    them.
    """
    for module in model.modules():
        if isinstance(module, TracksOffsets):
            module.track_offsets = enabled
            module._last_offsets = module._last_modulation = None


def offset_statistics(model: nn.Module) -> dict[str, OffsetStatistics]:
    """The statistics of each layer's last forward pass, by the layer's name.

    Empty before :func:`track_offsets` was called and a batch went through.
    """
    return {
        name: OffsetStatistics(*module._last_offsets.tolist())
        for name, module in model.named_modules()
        if isinstance(module, TracksOffsets) and module._last_offsets is not None
    }


def modulation_statistics(model: nn.Module) -> dict[str, ModulationStatistics]:
    """As :func:`offset_statistics`, of the factors; a layer that has none (DCN v1) is not in it."""
    return {
        name: ModulationStatistics(*module._last_modulation.tolist())
        for name, module in model.named_modules()
        if isinstance(module, TracksOffsets) and module._last_modulation is not None
    }


def offset_parameter_groups(model: nn.Module, lr: float, offset_lr_mult: float = 0.1) -> list[dict]:
    """Parameter groups for an optimizer in which the prediction of offsets and masks learns more slowly.

    ``torch.optim.AdamW(offset_parameter_groups(model, lr=1e-3), weight_decay=0.05)``. What mmengine's
    ``dcn_offset_lr_mult`` is to a config.

    Args:
        model: with any layers that predict their offsets, of :mod:`dcnzoo.layers` or :mod:`dcnzoo.models`.
        lr: the learning rate of everything else.
        offset_lr_mult: times ``lr``, that of the prediction.

    Returns:
        One group without and one with the parameters of the prediction; each parameter once.
    """
    offsets = {
        id(parameter): parameter
        for module in model.modules()
        if isinstance(module, OFFSET_PREDICTORS)
        for parameter in module.parameters()
    }
    others = [parameter for parameter in model.parameters() if id(parameter) not in offsets]
    groups = [
        {"params": others, "lr": lr},
        {"params": list(offsets.values()), "lr": lr * offset_lr_mult},
    ]
    return [group for group in groups if group["params"]]
