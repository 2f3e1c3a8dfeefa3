"""Shared code of the families of deformable convolution: any rank, plain and transposed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from families import OURS, Call, Unsupported, Work, leaves
from torch import Tensor

# Pixels. Learnt offsets have this size but are smoother; independent offsets are harder for caches.
OFFSET_STD = 2.0
# The reference stores every sample several times: larger cases take minutes and gigabytes.
REFERENCE_SAMPLES = 5_000_000  # a sample: one channel at one tap and pixel
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    """A layer with the same number of input and output channels; transposed in transposed families."""

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
    groups: int = 1
    offset_groups: int = 1
    im2col_step: int | None = None
    main: bool = False
    optional: bool = False

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.stride,) * self.rank

    @property
    def paddings(self) -> tuple[int, ...]:
        return (self.padding,) * self.rank

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
            f"groups {self.groups}": self.groups > 1,
            f"offset groups {self.offset_groups}": self.offset_groups > 1,
            f"step {self.im2col_step}": self.im2col_step is not None,
            self.op: self.op != "v2",
        }
        return ", ".join([text, *(word for word, holds in extras.items() if holds)])

    def small(self) -> Case:
        return replace(self, batch=1, size=(9, 11, 6)[: self.rank])

    @property
    def fields(self) -> tuple[int, ...]:
        """The spatial size of offset and mask."""
        return self.size if self.transposed else self.out_size

    def work(self, item: int) -> Work:
        samples = self.batch * math.prod(self.fields) * self.kernel**self.rank
        corners = 2**self.rank
        flops = 2 * samples * self.channels**2 / self.groups
        return Work(flops, samples * self.channels * corners * item)

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        taps, per_group = self.kernel**self.rank, self.channels // self.groups
        kernel = [self.kernel] * self.rank
        tensors = {
            "input": normal(self.batch, self.channels, *self.size),
            "weight": normal(self.channels, per_group, *kernel) * (per_group * taps) ** -0.5,
            "offset": normal(self.batch, self.offset_groups * taps * self.rank, *self.fields) * OFFSET_STD,
            "mask": normal(self.batch, self.offset_groups * taps, *self.fields).sigmoid(),
        }
        if self.op == "v1":
            del tensors["mask"]
        return {"mask": None, **{name: t.to(device, dtype) for name, t in tensors.items()}}


def deformable(name: str, memory_format: torch.memory_format, backend: str = "auto") -> Callable:
    """Return a contestant: an operator of dcnzoo."""

    def prepare(case: Case, t: dict, threads: int) -> Call:
        from dcnzoo import ops
        from dcnzoo.ops import _backend

        input = t["input"].contiguous(memory_format=memory_format)
        given = leaves(input, t["weight"], t["offset"], t["mask"])
        options = dict(groups=case.groups, im2col_step=case.im2col_step)

        def forward() -> Tensor:
            _backend.use(backend)  # also for the backward, which runs before the next contestant
            return getattr(ops, name)(*given, None, case.strides, case.paddings, **options)

        return Call(forward, tuple(g for g in given if g is not None))

    return prepare


def contestants(
    rank: int,
    transposed: bool = False,
    rivals: Mapping[str, Callable] = {},
) -> tuple[tuple[str, ...], dict[str, Callable]]:
    """Return FLOORS and CONTESTANTS of a family, with additional ``rivals``."""
    name = f"deform_conv{'_transpose' if transposed else ''}{rank}d"
    plain = f"conv{'_transpose' if transposed else ''}{rank}d"
    formats = {"": torch.contiguous_format} | ({" channels_last": LAST[rank]} if rank in LAST else {})

    def floor(memory_format: torch.memory_format) -> Callable:
        def prepare(case: Case, t: dict, threads: int) -> Call:
            given = leaves(*(t[n].contiguous(memory_format=memory_format) for n in ("input", "weight")))
            geometry = dict(stride=case.stride, padding=case.padding, groups=case.groups)
            return Call(lambda: getattr(F, plain)(*given, **geometry), given)

        return prepare

    def tvdcn(case: Case, t: dict, threads: int) -> Call:
        from tvdcn import ops

        given = leaves(t["input"], t["weight"], t["offset"], t["mask"])
        return Call(
            lambda: getattr(ops, name)(*given, None, case.strides, case.paddings, groups=case.groups),
            tuple(g for g in given if g is not None),
        )

    def by_the_reference(case: Case, t: dict, threads: int) -> Call:
        from dcnzoo.ops import reference

        if case.work(1).gathered / 2**rank > REFERENCE_SAMPLES:
            limit = f"{REFERENCE_SAMPLES / 1e6:.0f} M samples"
            raise Unsupported(f"not run above {limit}: the reference is slow and needs much memory")
        given = leaves(t["input"], t["weight"], t["offset"], t["mask"])
        lists = [(v,) * rank for v in (case.stride, case.padding, *([0] if transposed else []), 1)]
        function = reference.deform_conv_transpose if transposed else reference.deform_conv
        return Call(
            lambda: function(*given, None, *lists, case.groups), tuple(g for g in given if g is not None)
        )

    ours = {f"{OURS}{suffix}": deformable(name, form) for suffix, form in formats.items()}
    floors = {f"F.{plain}{suffix}": floor(form) for suffix, form in formats.items()}
    others = {**rivals, "tvdcn": tvdcn, "reference": by_the_reference}
    return tuple(floors), {**ours, **floors, **others}
