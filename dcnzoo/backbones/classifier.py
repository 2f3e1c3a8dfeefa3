"""InternImage's classification heads, with the parameter names of the official ImageNet checkpoints."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcnzoo.layers.base import integer, refuse
from dcnzoo.layers.channels_last import build_activation, build_norm


class CrossAttention(nn.Module):
    """Multi-head attention of queries ``(N, Q, C)`` to keys ``(N, L, C)``: ``(N, Q, out_channels)``."""

    def __init__(self, channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.k_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        def split(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # [N, L, C] -> [N, heads, L, C / heads]
            return F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        x = F.scaled_dot_product_attention(
            split(query, self.q.weight, self.q_bias),
            split(key, self.k.weight, self.k_bias),
            split(value, self.v.weight, self.v_bias),
        )
        return self.proj(x.transpose(1, 2).flatten(2))


class AttentionPool(nn.Module):
    """Attention with the mean of all pixels as its query: ``(N, L, channels)`` to ``(N, out_channels)``."""

    def __init__(self, channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.norm1_q = build_norm("LN", channels)
        self.norm1_k = build_norm("LN", channels)
        self.norm1_v = build_norm("LN", channels)
        self.cross_dcn = CrossAttention(channels, heads, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        return self.cross_dcn(self.norm1_q(mean), self.norm1_k(x), self.norm1_v(x)).squeeze(1)


class Classifier(nn.Module):
    """Base of a backbone with a classification head. The constructor must call :meth:`_add_head`.

    Attributes:
        num_classes: None: no head. 0: a head without its last layer.
        num_features: channels of the head's input.
        head_hidden_size: input channels of the head's last layer.
    """

    def _add_head(
        self,
        num_classes: int | None,
        channels: int,  # of the last level
        cls_scale: float,
        act_layer: str,
        use_clip_projector: bool,
    ) -> None:
        self.num_classes = num_classes
        self.use_clip_projector = use_clip_projector
        self.num_features = 1024 if use_clip_projector else channels
        self.head_hidden_size = 768 if use_clip_projector else int(channels * cls_scale)
        if num_classes is None:
            return
        if use_clip_projector:
            self.dcnv3_head_x4 = nn.Sequential(
                nn.Conv2d(channels, 4 * self.num_features, 1), nn.PixelShuffle(2)
            )
            self.dcnv3_head_x3 = nn.Conv2d(channels // 2, self.num_features, 1)
            self.clip_projector = AttentionPool(self.num_features, 16, self.head_hidden_size)
            self.fc_norm = build_norm("LN", self.head_hidden_size)
        else:
            self.conv_head = nn.Sequential(
                nn.Conv2d(channels, self.head_hidden_size, 1, bias=False),
                build_norm("BN", self.head_hidden_size, first_in=True, first_out=True),
                build_activation(act_layer),
            )
        self.head: nn.Module = nn.Identity()
        if num_classes:  # InternImage sets the initial values of each Linear
            self.head = nn.Linear(self.head_hidden_size, integer(self, "num_classes", num_classes))

    def _merge_levels(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the head's input ``(N, num_features, H, W)``, made from the levels' maps ``(N, H, W, C)``.

        Raises:
            RuntimeError: the sizes of the last two levels do not match (with ``use_clip_projector``).
        """
        last = maps[-1].permute(0, 3, 1, 2)
        if self.num_classes is None or not self.use_clip_projector:
            return last
        x, finer = self.dcnv3_head_x4(last), self.dcnv3_head_x3(maps[-2].permute(0, 3, 1, 2))
        if x.shape != finer.shape:
            sizes = f"{tuple(finer.shape[2:])} and {tuple(last.shape[2:])} on the last two levels"
            refuse(self, "x", "a size that is halved exactly, a multiple of 32", sizes, RuntimeError)
        return x + finer

    def forward_head(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)``.

        Args:
            x: the head's input, ``(N, num_features, H, W)``.
        """
        if self.use_clip_projector:
            x = self.fc_norm(self.clip_projector(x.flatten(2).transpose(1, 2)))
        else:
            x = self.conv_head(x).mean((2, 3))
        return self.head(x)
