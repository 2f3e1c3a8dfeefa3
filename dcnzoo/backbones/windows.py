"""Attention in windows, built from the layers of one of timm's attention modules.

timm has none. ViTDet (Li et al. 2022) and ViT-Adapter (Chen et al. 2023) compute most blocks in windows of
14 × 14 tokens.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcnzoo.layers.base import refuse

# tuples, not sets: parameters must have the same order in every process and in an optimizer's state
_PARTS = ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop")
_PARAMETERS = ("q_bias", "v_bias", "relative_position_bias_table")


class WindowAttention(nn.Module):
    """Self-attention among the tokens of a window; its parameters keep the names of timm's attention.

    A map that windows do not cover exactly is padded with zeros at the bottom and right. The padded tokens
    are keys, too, as in the authors' code.

    Args:
        attention: attention of a block of timm's ``VisionTransformer``, ``Beit`` or ``Eva``. Its layers are
            used. A table of relative positions is resized to the window.
        window: height and width of a window, in tokens.
        pad_input: True: pad the tokens, so that the padded keys and values are the biases of ``qkv``. False:
            pad the queries, keys and values with zeros.

    Raises:
        ValueError: ``window`` is below 1, or the attention has parts that this class does not compute.
    """

    if TYPE_CHECKING:  # the layers of timm's attention are added by name

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, attention: nn.Module, window: int, pad_input: bool = False) -> None:
        super().__init__()
        if window < 1:
            refuse(self, "window", "at least 1", window)
        source: Any = attention
        parts = dict(attention.named_children())
        parameters = dict(attention.named_parameters(recurse=False))
        others = sorted((parts.keys() - _PARTS) | (parameters.keys() - _PARAMETERS))
        if others or not {"qkv", "proj"} <= parts.keys():
            got = f"{type(attention).__name__} with {', '.join(others) or 'other layers'}"
            refuse(self, "attention", "timm's self-attention with qkv and proj", got)
        if "relative_position_bias_table" in parameters:
            source.set_window_size((window, window))
            # without the row and column of the class token
            self.register_buffer("index", source.relative_position_index[1:, 1:].clone(), persistent=False)
        for name in _PARTS:
            self.add_module(name, parts.get(name, nn.Identity()))
        for name in _PARAMETERS:
            self.register_parameter(name, getattr(attention, name, None))
        self.num_heads, self.window, self.pad_input = source.num_heads, window, pad_input

    def forward(self, x: Tensor, **options: None) -> Tensor:  # [N, H, W, C]
        """Return the attention of a map of tokens, in its shape.

        Args:
            options: other arguments of timm's attention (masks); each must be None.
        """
        height, width = x.shape[1:3]
        if self.pad_input:
            windows = self._project(self._split(x))
        else:
            windows = self._split(self._project(x))  # [windows, window², 3 · C]
        query, key, value = windows.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, self._bias(query), dropout)
        x = self._join(x.transpose(1, 2).flatten(2), height, width)
        return self.proj_drop(self.proj(self.norm(x)))

    def _project(self, x: Tensor) -> Tensor:
        if self.q_bias is None:
            return self.qkv(x)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.qkv.weight, bias)

    def _bias(self, query: Tensor) -> Tensor | None:  # [1, heads, window², window²]
        if self.relative_position_bias_table is None:
            return None
        return self.relative_position_bias_table[self.index].permute(2, 0, 1)[None].to(query.dtype)

    def _split(self, x: Tensor) -> Tensor:  # [N, H, W, C] -> [N · rows · columns, window², C]
        window = self.window
        # not -(-size // window): ONNX's Div rounds negative numbers towards zero
        rows, columns = ((size + window - 1) // window for size in x.shape[1:3])
        x = F.pad(x, (0, 0, 0, columns * window - x.shape[2], 0, rows * window - x.shape[1]))
        x = x.unflatten(1, (rows, window)).unflatten(3, (columns, window))
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def _join(self, x: Tensor, height: int, width: int) -> Tensor:  # the reverse of _split
        window = self.window
        rows, columns = ((size + window - 1) // window for size in (height, width))
        x = x.unflatten(0, (-1, rows, columns)).unflatten(3, (window, window))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]
