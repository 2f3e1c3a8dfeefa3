"""RoIAlign of rotated regions on the finest FPN level at 1024×1024."""

from __future__ import annotations

import torch
from torch import Tensor

from . import OURS, Call, leaves, roi_align

FLOORS = ()
STRIDE = roi_align.STRIDE


class Case(roi_align.Case):
    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        given = super().tensors(dtype, device)
        image, corner, end = given["rois"].split([1, 2, 2], dim=1)
        angle = torch.linspace(-3, 3, len(image), dtype=dtype, device=device)[:, None]
        return {**given, "rois": torch.cat([image, (corner + end) / 2, end - corner, angle], dim=1)}


CASES = [Case("box-head", "RoI Transformer", 1000, 7, size=(256, 256))]


def _dcnzoo(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import roi_align_rotated

    (input,) = leaves(t["input"])
    return Call(lambda: roi_align_rotated(input, t["rois"], case.bins, 1 / STRIDE, 2), (input,))


def _mmcv(case: Case, t: dict, threads: int) -> Call:
    from mmcv.ops import roi_align_rotated

    (input,) = leaves(t["input"])
    size = (case.bins, case.bins)
    return Call(lambda: roi_align_rotated(input, t["rois"], size, 1 / STRIDE, 2, True, False), (input,))


CONTESTANTS = {OURS: _dcnzoo, "mmcv": _mmcv}
