"""RoIAlign on the finest FPN level at 800×1344."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import OURS, Call, leaves

FLOORS = ()
STRIDE = 4  # of the level, in image pixels


@dataclass(frozen=True)
class Case:
    name: str
    group: str
    rois: int
    bins: int
    channels: int = 256
    size: tuple[int, int] = (200, 336)
    op: str = "avg"
    main: bool = False
    optional: bool = False

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.rois, self.channels, self.bins, self.bins)

    @property
    def shape(self) -> str:
        height, width = self.size
        return f"{self.rois} RoIs of 1×{self.channels}×{height}×{width} to {self.bins}×{self.bins}"

    def small(self) -> Case:
        return replace(self, rois=3, size=(20, 24))

    def work(self, item: int) -> None:
        return None

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        height, width = (STRIDE * s for s in self.size)
        # 16 to 112 px: the RoIs that an FPN assigns to this level
        sides = 16 * 7 ** torch.rand(self.rois, 2, generator=generator)
        corner = torch.rand(self.rois, 2, generator=generator) * (torch.tensor([width, height]) - sides)
        rois = torch.cat([torch.zeros(self.rois, 1), corner, corner + sides], dim=1)
        maps = torch.randn(1, self.channels, *self.size, generator=generator)
        return {"input": maps.to(device, dtype), "rois": rois.to(device, dtype)}


CASES = [Case("box-head", "Mask R-CNN", 1000, 7), Case("mask-head", "Mask R-CNN", 100, 14)]


def _dcnzoo(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import roi_align

    (input,) = leaves(t["input"])
    return Call(lambda: roi_align(input, t["rois"], case.bins, 1 / STRIDE), (input,))


def _mmcv(case: Case, t: dict, threads: int) -> Call:
    from mmcv.ops import roi_align

    (input,) = leaves(t["input"])
    return Call(lambda: roi_align(input, t["rois"], case.bins, 1 / STRIDE, 0, "avg", True), (input,))


def _torchvision(case: Case, t: dict, threads: int) -> Call:
    from torchvision.ops import roi_align

    (input,) = leaves(t["input"])
    return Call(lambda: roi_align(input, t["rois"], case.bins, 1 / STRIDE, -1, True), (input,))


CONTESTANTS = {OURS: _dcnzoo, "mmcv": _mmcv, "torchvision": _torchvision}
