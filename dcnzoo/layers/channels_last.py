"""Norms and activations of networks with maps ``(N, H, W, C)``, with the official parameter names."""

from torch import Tensor, nn
from torch.nn import functional as F


class ToChannelsFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:  # [N, H, W, C] -> [N, C, H, W]
        return x.permute(0, 3, 1, 2)


class ToChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, H, W, C]
        return x.permute(0, 2, 3, 1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps ``(N, C, *size)``."""

    def forward(self, input: Tensor) -> Tensor:
        last = input.dim() - 1  # torch's older exporter to ONNX writes negative axes into the file
        rows = input.movedim(1, last)
        return F.layer_norm(rows, self.normalized_shape, self.weight, self.bias, self.eps).movedim(last, 1)


def build_norm(kind: str, channels: int, first_in: bool = False, first_out: bool = False) -> nn.Sequential:
    """Return a norm over channels, with the permutations that its input and output need.

    Parameter names of the official checkpoints contain the norm's index in the ``nn.Sequential``, after the
    permutations.

    Args:
        kind: ``'LN'`` or ``'BN'``.
        first_in, first_out: whether the input and the output have their channels first.

    Raises:
        ValueError: ``kind`` has another value.
    """
    before: list[nn.Module]
    after: list[nn.Module]
    if kind == "LN":
        before = [ToChannelsLast()] if first_in else []
        after = [ToChannelsFirst()] if first_out else []
        return nn.Sequential(*before, nn.LayerNorm(channels, eps=1e-6), *after)
    if kind == "BN":
        before = [] if first_in else [ToChannelsFirst()]
        after = [] if first_out else [ToChannelsLast()]
        return nn.Sequential(*before, nn.BatchNorm2d(channels), *after)
    raise ValueError(f"norm_layer: expected 'LN' or 'BN', got {kind!r}")


def build_activation(kind: str) -> nn.Module:
    """Return an activation: ``'GELU'``, ``'ReLU'`` or ``'SiLU'``. Raise ValueError for any other name."""
    activations = {"GELU": nn.GELU(), "ReLU": nn.ReLU(inplace=True), "SiLU": nn.SiLU(inplace=True)}
    if kind not in activations:
        raise ValueError(f"act_layer: expected 'GELU', 'ReLU' or 'SiLU', got {kind!r}")
    return activations[kind]
