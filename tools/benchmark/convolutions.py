"""What the families of deformable convolution share that are not in two dimensions, or transposed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from families import OURS, Call, Unsupported, Work, leaves
from families.deform_conv2d import OFFSET_STD, REFERENCE_SAMPLES
from torch import Tensor

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    """A layer with as many channels in as out; transposed where its family is."""

    name: str
    group: str
    batch: int
    channels: int
    size: tuple[int, ...]  # of the input
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    transposed: bool = False
    op: str = "v2"
    main: bool = False
    optional: bool = False

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def out_size(self) -> tuple[int, ...]:
        reach = self.kernel - 2 * self.padding
        if self.transposed:
            return tuple((s - 1) * self.stride + reach for s in self.size)
        return tuple((s - reach) // self.stride + 1 for s in self.size)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.out_size)

    @property
    def shape(self) -> str:
        text = "×".join(map(str, (self.batch, self.channels, *self.size)))
        extras = {
            f"kernel {self.kernel}": self.kernel != 3,
            f"stride {self.stride}": self.stride > 1,
            self.op: self.op != "v2",
        }
        return ", ".join([text, *(word for word, holds in extras.items() if holds)])

    def small(self) -> Case:
        return replace(self, batch=1, size=(5, 7, 6)[: self.rank])

    @property
    def fields(self) -> tuple[int, ...]:
        """The spatial size of offset and mask."""
        return self.size if self.transposed else self.out_size

    def work(self, item: int) -> Work:
        samples = self.batch * math.prod(self.fields) * self.kernel**self.rank
        corners = 2**self.rank
        return Work(2 * samples * self.channels**2, samples * self.channels * corners * item)

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        taps = self.kernel**self.rank
        weight = normal(self.channels, self.channels, *[self.kernel] * self.rank)
        tensors = {
            "input": normal(self.batch, self.channels, *self.size),
            "weight": weight * (self.channels * taps) ** -0.5,
            "offset": normal(self.batch, taps * self.rank, *self.fields) * OFFSET_STD,
            "mask": normal(self.batch, taps, *self.fields).sigmoid(),
        }
        if self.op == "v1":
            del tensors["mask"]
        return {"mask": None, **{name: t.to(device, dtype) for name, t in tensors.items()}}


def contestants(rank: int, transposed: bool = False) -> tuple[tuple[str, ...], dict[str, Callable]]:
    """FLOORS and CONTESTANTS of a family."""
    name = f"deform_conv{'_transpose' if transposed else ''}{rank}d"
    plain = f"conv{'_transpose' if transposed else ''}{rank}d"
    formats = {"": torch.contiguous_format} | ({" channels_last": LAST[rank]} if rank in LAST else {})

    def deformable(package: str, memory_format: torch.memory_format) -> Callable:
        def prepare(case: Case, t: dict, threads: int) -> Call:
            if package == OURS:
                from dcnzoo import ops
            else:
                from tvdcn import ops
            input = t["input"].contiguous(memory_format=memory_format)
            given = leaves(input, t["weight"], t["offset"], t["mask"])
            stride, padding = (case.stride,) * rank, (case.padding,) * rank
            return Call(
                lambda: getattr(ops, name)(*given, None, stride, padding),
                tuple(g for g in given if g is not None),
            )

        return prepare

    def floor(memory_format: torch.memory_format) -> Callable:
        def prepare(case: Case, t: dict, threads: int) -> Call:
            given = leaves(*(t[n].contiguous(memory_format=memory_format) for n in ("input", "weight")))
            return Call(lambda: getattr(F, plain)(*given, None, case.stride, case.padding), given)

        return prepare

    def by_the_reference(case: Case, t: dict, threads: int) -> Call:
        from dcnzoo.ops import reference

        if case.work(1).gathered / 2**rank > REFERENCE_SAMPLES:
            limit = f"{REFERENCE_SAMPLES / 1e6:.0f} M samples"
            raise Unsupported(f"not run above {limit}: slow and hungry on purpose")
        given = leaves(t["input"], t["weight"], t["offset"], t["mask"])
        lists = [(v,) * rank for v in (case.stride, case.padding, *([0] if transposed else []), 1)]
        function = reference.deform_conv_transpose if transposed else reference.deform_conv
        return Call(lambda: function(*given, None, *lists, 1), tuple(g for g in given if g is not None))

    ours = {f"{OURS}{suffix}": deformable(OURS, form) for suffix, form in formats.items()}
    floors = {f"F.{plain}{suffix}": floor(form) for suffix, form in formats.items()}
    rivals = {"tvdcn": deformable("tvdcn", torch.contiguous_format), "reference": by_the_reference}
    return tuple(floors), {**ours, **floors, **rivals}
