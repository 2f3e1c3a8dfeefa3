"""DCNv4 without its projections, on the same shapes as DCNv3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import OURS, Call, dcnv3, leaves
from .dcnv3 import FLOORS, TAPS, geometry, grid_sample, plain

__all__ = ["CASES", "CONTESTANTS", "FLOORS"]


@dataclass(frozen=True)
class Case(dcnv3.Case):
    op: str = "v4"

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        t = super().tensors(dtype, device)
        fields = torch.cat(
            [t[name].unflatten(3, (self.groups, -1)) for name in ("offset", "mask")], 4
        ).flatten(3)
        return {"input": t["input"], "offset_mask": F.pad(fields, [0, -fields.shape[3] % 8])}


CASES = [
    Case(c.name, c.group.replace("Intern", "FlashIntern"), c.batch, c.channels, c.size, optional=c.optional)
    for c in dcnv3.CASES
]


def _dcnzoo(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import dcnv4

    given = leaves(t["input"], t["offset_mask"])
    return Call(lambda: dcnv4(*given, *geometry(case)), given)


def _reference(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import reference

    return plain(reference.dcnv4, case, leaves(t["input"], t["offset_mask"]))


def _grid_sample(case: Case, t: dict, threads: int) -> Call:
    input, fields = given = leaves(t["input"], t["offset_mask"])

    def forward() -> Tensor:
        of_groups = fields[..., : case.groups * TAPS * 3].unflatten(3, (case.groups, TAPS * 3))
        offset, mask = of_groups.split([TAPS * 2, TAPS], dim=4)
        return grid_sample(case, input, offset.flatten(3), mask.flatten(3))

    return Call(forward, given)


OWN = {OURS: _dcnzoo, "reference grid_sample": _grid_sample, "reference": _reference}
CONTESTANTS = {**dcnv3.CONTESTANTS, **OWN}
