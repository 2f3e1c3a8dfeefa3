"""Multi-scale deformable attention.

Deformable DETR at 800×1344, whose queries are all pixels or 300 objects, and RF-DETR's decoder: 300 objects,
and the 1300 and 22100 queries (detection, key points) that its pull request 1385 measures.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import OURS, Call, Unsupported, leaves

FLOORS = ()
LEVELS = ((100, 168), (50, 84), (25, 42), (13, 21))
OFFSET_STD = 2.0  # pixels of the level


@dataclass(frozen=True)
class Case:
    name: str
    group: str
    queries: int
    levels: tuple[tuple[int, int], ...] = LEVELS
    heads: int = 8
    channels: int = 32  # of a head
    points: int = 4
    batch: int = 1
    op: str = "attention"
    main: bool = False
    optional: bool = False

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.batch, self.queries, self.heads * self.channels)

    @property
    def shape(self) -> str:
        maps = f"{self.batch}×{self.pixels}×{self.heads}×{self.channels}"
        return f"{self.queries} queries of {maps}, {self.points} points"

    def small(self) -> Case:
        return replace(self, queries=5, levels=((4, 6), (2, 3)))

    def work(self, item: int) -> None:
        return None

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(self.batch, *shape, generator=generator)

        points = (self.queries, self.heads, len(self.levels), self.points)
        # neighbouring queries sample neighbouring positions, row by row
        steps = round(self.queries**0.5) + 1
        place = torch.cartesian_prod(*[torch.linspace(0, 1, steps)] * 2)[: self.queries].flip(1)
        extent = torch.tensor(self.levels).flip(1)
        locations = place.view(-1, 1, 1, 1, 2) + normal(*points, 2) * OFFSET_STD / extent.view(-1, 1, 2)
        tensors = {
            "value": normal(self.pixels, self.heads, self.channels),
            "locations": locations,
            "weights": normal(*points).flatten(3).softmax(-1).view(self.batch, *points),
        }
        starts = [0, *itertools.accumulate(h * w for h, w in self.levels)][:-1]
        levels = {"sizes": torch.tensor(self.levels), "starts": torch.tensor(starts)}
        return {
            **{name: tensor.to(device, dtype) for name, tensor in tensors.items()},
            **{name: tensor.to(device) for name, tensor in levels.items()},
        }


CASES = [Case("encoder", "Deformable DETR", Case("", "", 0).pixels), Case("decoder", "Deformable DETR", 300)]
CASES += [
    Case(f"rf-detr-{queries}", "RF-DETR", queries, ((48, 48),), heads=16, channels=16, points=2)
    for queries in (300, 1300, 22100)
]


def _dcnzoo(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import ms_deform_attn

    value, locations, weights = given = leaves(t["value"], t["locations"], t["weights"])
    return Call(lambda: ms_deform_attn(value, t["sizes"], t["starts"], locations, weights), given)


def _mmcv(case: Case, t: dict, threads: int) -> Call:
    if t["value"].device.type == "cpu":
        raise Unsupported("its operator requires CUDA; on the CPU it uses grid_sample")
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    value, locations, weights = given = leaves(t["value"], t["locations"], t["weights"])
    apply = MultiScaleDeformableAttnFunction.apply
    return Call(lambda: apply(value, t["sizes"], t["starts"], locations, weights, 64), given)


def _package(case: Case, t: dict, threads: int) -> Call:
    from torch_ms_deform_attn import ms_deform_attn

    value, locations, weights = given = leaves(t["value"], t["locations"], t["weights"])
    return Call(lambda: ms_deform_attn(value, t["sizes"], t["starts"], locations, weights), given)


def _grid_sample(case: Case, t: dict, threads: int) -> Call:
    """The implementation of Deformable DETR and mmcv for the CPU."""
    value, locations, weights = given = leaves(t["value"], t["locations"], t["weights"])
    if value.device.type == "cpu" and value.dtype in (torch.bfloat16, torch.float16):
        raise Unsupported("coordinates in half precision are off by pixels")

    def forward() -> Tensor:
        samples = []
        levels = zip(value.split([h * w for h, w in case.levels], dim=1), case.levels, strict=True)
        for level, (pixels, (height, width)) in enumerate(levels):
            maps = pixels.flatten(2).transpose(1, 2).reshape(-1, case.channels, height, width)
            at = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
            samples.append(F.grid_sample(maps, at, align_corners=False))
        factors = weights.transpose(1, 2).reshape(case.batch * case.heads, 1, case.queries, -1)
        out = (torch.stack(samples, dim=-2).flatten(-2) * factors).sum(-1)
        return out.view(case.batch, -1, case.queries).transpose(1, 2).contiguous()

    return Call(forward, given)


CONTESTANTS = {
    OURS: _dcnzoo,
    "mmcv": _mmcv,
    "torch-ms-deform-attn": _package,
    "reference grid_sample": _grid_sample,
}
