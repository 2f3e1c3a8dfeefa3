"""new_op compared with the same formula in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import OURS, Call, leaves

FLOORS = ("torch",)


@dataclass(frozen=True)
class Case:
    name: str
    group: str
    channels: int
    size: tuple[int, int]
    op: str = "new_op"
    main: bool = False
    optional: bool = False

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (1, self.channels, *self.size)

    @property
    def shape(self) -> str:
        return "×".join(map(str, self.out_shape))

    def small(self) -> Case:
        return replace(self, size=(3, 4))

    def work(self, item: int) -> None:
        return None

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = {"input": self.out_shape, "weight": (self.channels,)}
        return {n: torch.randn(s, generator=generator).to(device, dtype) for n, s in shapes.items()}


CASES = [Case("c3", "ResNet-50", 128, (100, 168))]


def _dcnzoo(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import new_op

    input, weight = given = leaves(t["input"], t["weight"])
    return Call(lambda: new_op(input, weight), given)


def _torch(case: Case, t: dict, threads: int) -> Call:
    input, weight = given = leaves(t["input"], t["weight"])
    return Call(lambda: input * weight.view(1, -1, 1, 1), given)


CONTESTANTS = {OURS: _dcnzoo, "torch": _torch}
