"""Deformable RoI pooling on the finest FPN level at 800×1344; RoIAlign of that shape is the floor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import OURS, Call, Unsupported, leaves, roi_align

FLOORS = ("roi_align",)
# The reference processes RoIs one by one.
REFERENCE_ROIS = 100


@dataclass(frozen=True)
class Case(roi_align.Case):
    op: str = "dpool"

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        # gamma scales offsets to a tenth of the RoI's size
        offset = torch.randn(self.rois, 2, self.bins, self.bins, generator=generator)
        return {**super().tensors(dtype, device), "offset": offset.to(device, dtype)}


CASES = [Case("box-head", "dpool", 1000, 7), Case("few-rois", "dpool", REFERENCE_ROIS, 7)]


def _sampling(case: Case) -> tuple:
    return (case.bins, case.bins), 1 / roi_align.STRIDE, 0, 0.1


def _dcnzoo(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import deform_roi_pool

    input, offset = given = leaves(t["input"], t["offset"])
    return Call(lambda: deform_roi_pool(input, t["rois"], offset, *_sampling(case)), given)


def _mmcv(case: Case, t: dict, threads: int) -> Call:
    from mmcv.ops import deform_roi_pool

    if t["input"].device.type == "cpu":
        raise Unsupported("its operator has no CPU kernel")
    input, offset = given = leaves(t["input"], t["offset"])
    return Call(lambda: deform_roi_pool(input, t["rois"], offset, *_sampling(case)), given)


def _reference(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import reference

    if case.rois > REFERENCE_ROIS:
        raise Unsupported(f"not run above {REFERENCE_ROIS} RoIs: the reference is slow")
    input, offset = given = leaves(t["input"], t["offset"])
    return Call(lambda: reference.deform_roi_pool(input, t["rois"], offset, *_sampling(case)), given)


CONTESTANTS = {
    OURS: _dcnzoo,
    "roi_align": roi_align.CONTESTANTS[OURS],
    "mmcv": _mmcv,
    "reference": _reference,
}
