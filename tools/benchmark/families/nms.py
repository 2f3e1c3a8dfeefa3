"""Non-maximum suppression of boxes of one class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import OURS, Call

FLOORS = ()
IOU = 0.5


@dataclass(frozen=True)
class Case:
    name: str
    group: str
    boxes: int
    op: str = "nms"
    main: bool = False
    out_shape: tuple[int, ...] = ()
    optional: bool = False

    @property
    def shape(self) -> str:
        return f"{self.boxes} boxes"

    def small(self) -> Case:
        return replace(self, boxes=10)

    def work(self, item: int) -> None:
        return None

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        # ten boxes around each object, as from a dense head
        objects = torch.rand(self.boxes // 10, 4, generator=generator) * torch.tensor([1200, 700, 80, 80])
        boxes = objects.repeat(10, 1) + torch.randn(len(objects) * 10, 4, generator=generator) * 6
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + 16 + boxes[:, 2:].abs()], dim=1)
        scores = torch.rand(len(boxes), generator=generator)
        return {"boxes": boxes.to(device, dtype), "scores": scores.to(device, dtype)}


CASES = [Case(str(boxes), "proposals", boxes) for boxes in (1000, 8000, 10000)]


def _dcnzoo(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import nms

    return Call(lambda: nms(t["boxes"], t["scores"], IOU))


def _mmcv(case: Case, t: dict, threads: int) -> Call:
    from mmcv.ops import nms

    return Call(lambda: nms(t["boxes"], t["scores"], IOU)[1])


def _torchvision(case: Case, t: dict, threads: int) -> Call:
    from torchvision.ops import nms

    return Call(lambda: nms(t["boxes"], t["scores"], IOU))


CONTESTANTS = {OURS: _dcnzoo, "mmcv": _mmcv, "torchvision": _torchvision}
