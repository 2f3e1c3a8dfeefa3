"""Layers that ``torch.vmap``, the exporter or a runtime does not handle as PyTorch does.

Each has the outputs of the layer itself. Layers that pool RoIs are in
:mod:`dcnzoo.openmmlab.export.mixins.roi`.
"""

import torch
from mmcv import ops as mmcv_ops
from torch import Tensor, nn


def running_max(values: Tensor, axis: int) -> Tensor:
    """The values of ``torch.cummax``, for which torch's exporter has no translation."""

    def step(largest: Tensor, row: Tensor) -> list[Tensor]:
        largest = torch.maximum(largest, row)
        return [largest, largest.clone()]

    rows = values.movedim(axis, 0).contiguous()
    return torch.ops.higher_order.scan(step, [rows[0]], [rows], ())[1].movedim(0, axis)


class CornerPool(mmcv_ops.CornerPool):
    def forward(self, x: Tensor) -> Tensor:
        axis, flip = self.cummax_dim_flip[self.mode]
        return running_max(x.flip(axis), axis).flip(axis) if flip else running_max(x, axis)


class GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # [N, C, …, W]
        """Compute means of rows first, then of the rows' means.

        The exporter writes ``InstanceNormalization``, whose error in onnxruntime grows with the number of
        values: 2e-5 at 537,600, which changes the order of DINO's queries.
        """
        y = x.reshape(x.shape[0], self.num_groups, -1, x.shape[-1])
        y = y - y.mean(3, keepdim=True).mean(2, keepdim=True)
        y = y * (y.square().mean(3, keepdim=True).mean(2, keepdim=True) + self.eps).rsqrt()
        y = y.reshape(x.shape)
        if self.weight is None:
            return y
        shape = (-1, *[1] * (x.dim() - 2))
        return y * self.weight.view(shape) + self.bias.view(shape)
