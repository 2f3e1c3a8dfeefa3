"""IoU and non-maximum suppression of rotated boxes, as in detectors for aerial images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import OURS, Call

FLOORS = ()
IOU = 0.3


@dataclass(frozen=True)
class Case:
    name: str
    group: str
    op: str  # iou or nms
    boxes: int
    others: int = 0
    size: int = 1024  # of the image, in pixels
    main: bool = False
    out_shape: tuple[int, ...] = ()
    optional: bool = False

    @property
    def shape(self) -> str:
        boxes = f"{self.boxes} × {self.others}" if self.others else str(self.boxes)
        return f"{boxes} boxes on {self.size}² pixels"

    def small(self) -> Case:
        return replace(self, boxes=10, others=min(self.others, 10))

    def work(self, item: int) -> None:
        return None

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def boxes(count: int) -> Tensor:  # ten around each object, as from a dense head
            objects = torch.rand(-(-count // 10), 5, generator=generator)
            objects = objects * torch.tensor([self.size, self.size, 90, 30, 3.14]) + torch.tensor(
                [0, 0, 20, 10, 0]
            )
            boxes = objects.repeat_interleave(10, 0)[:count]
            return boxes + torch.randn(count, 5, generator=generator) * torch.tensor([4, 4, 2, 2, 0.05])

        given = {"boxes": boxes(self.boxes), "others": boxes(self.others)}
        given["scores"] = torch.rand(self.boxes, generator=generator)
        return {name: value.to(device, dtype) for name, value in given.items()}


CASES = [
    Case("iou-2000", "all pairs", "iou", 2000, 2000),
    Case("iou-dense", "all pairs", "iou", 2000, 2000, size=100),
    Case("iou-anchors", "all pairs", "iou", 100, 20000),
    Case("nms-2000", "proposals", "nms", 2000),
    Case("nms-dense", "proposals", "nms", 2000, size=100),
    Case("nms-10000", "proposals", "nms", 10000),
]


def _dcnzoo(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import box_iou_rotated, nms_rotated

    if case.op == "nms":
        return Call(lambda: nms_rotated(t["boxes"], t["scores"], IOU))
    return Call(lambda: box_iou_rotated(t["boxes"], t["others"]))


def _mmcv(case: Case, t: dict, threads: int) -> Call:
    from mmcv.ops import box_iou_rotated, nms_rotated

    if case.op == "nms":
        return Call(lambda: nms_rotated(t["boxes"], t["scores"], IOU)[1])
    return Call(lambda: box_iou_rotated(t["boxes"], t["others"]))


CONTESTANTS = {OURS: _dcnzoo, "mmcv": _mmcv}
