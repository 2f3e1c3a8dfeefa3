"""Deformable convolution as one fused matrix product for tensor cores, in Triton.

The first call that may use a fused kernel imports this package, so ``import dcnzoo.ops`` does not need
Triton. The code is not specific to CUDA: it works with any driver of Triton.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cache, cached_property

import torch
import triton
from torch import Tensor

from .._arguments import memory_format
from . import kernels
from .configs import Config, choose, entry_of, target_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LEAST_CHANNELS = 16  # with fewer, most of a matrix product on tensor cores would be padding
INTERPRETED = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class Problem:
    """The arguments of a call of ``dcnzoo::deform_conv``, and the sizes that the kernels need."""

    input: Tensor
    weight: Tensor
    offset: Tensor | None
    mask: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    allow_tf32: bool

    @cached_property
    def taps(self) -> int:
        return math.prod(self.weight.shape[2:])

    @cached_property
    def offset_groups(self) -> int:
        return 1 if self.offset is None else self.offset.shape[1] // (2 * self.taps)

    @cached_property
    def mask_groups(self) -> int:
        return 1 if self.mask is None else self.mask.shape[1] // self.taps

    @cached_property
    def slice_channels(self) -> int:
        channels = self.input.shape[1]
        return math.gcd(channels // self.groups, channels // self.offset_groups, channels // self.mask_groups)

    @cached_property
    def slices(self) -> int:
        return self.input.shape[1] // self.slice_channels

    @cached_property
    def group_outputs(self) -> int:
        return self.weight.shape[0] // self.groups

    @cached_property
    def out_size(self) -> tuple[int, int]:
        def size(axis: int) -> int:
            reach = self.dilation[axis] * (self.weight.shape[axis + 2] - 1) + 1
            return (self.input.shape[axis + 2] + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

        return size(0), size(1)

    @cached_property
    def pixels(self) -> int:
        """Number of output pixels of all images."""
        return self.input.shape[0] * math.prod(self.out_size)

    def fits(self) -> bool:
        """Whether the fused kernels support this call. Otherwise another backend runs it."""
        if self.weight.dim() != 4 or self.weight.numel() == 0 or self.input.dtype not in DTYPES:
            return False
        narrow = min(self.slice_channels, self.group_outputs) < LEAST_CHANNELS
        one_group = self.slices == self.groups == 1  # few channels are padded then, as in a first layer
        return one_group or not narrow

    def is_faster(self) -> bool:
        """Whether the table lists the fused kernels as measured to be faster on this architecture."""
        if self.input.dtype == torch.float32 and not self.allow_tf32:
            return False  # tensor cores compute float32 only as TF32
        return str(self.input.dtype).removeprefix("torch.") in entry_of(_target(self.input.device))["auto"]

    def arguments(self) -> dict[str, object]:
        """Arguments of all kernels."""
        offset, mask = _strided(self.offset), _strided(self.mask)
        channels, outputs = self.input.shape[1], self.weight.shape[0]
        return {
            "input": _channels_last(self.input),
            "offset": offset,
            "mask": mask,
            "pixels": self.pixels,
            "out_pixels": math.prod(self.out_size),
            "out_w": self.out_size[1],
            "height": self.input.shape[2],
            "width": self.input.shape[3],
            **{f"{name}_{axis}": getattr(self, name)[a]
               for name in ("stride", "padding", "dilation") for a, axis in enumerate("yx")},
            "taps": self.taps,
            "kernel_w": self.weight.shape[3],
            **_places("offset", offset),
            **_places("mask", mask),
            "channels": channels,
            "group_channels": channels // self.groups,
            "outputs": outputs,
            "group_outputs": self.group_outputs,
            "slice_channels": self.slice_channels,
            "group_slices": self.slices // self.groups,
            "offset_slices": self.slices // self.offset_groups,
            "mask_slices": self.slices // self.mask_groups,
            "HAS_OFFSET": offset is not None,
            "HAS_MASK": mask is not None,
        }  # fmt: skip


def forward(problem: Problem, bias: Tensor | None, config: Config | None = None) -> Tensor:
    """The output, ``[N, O, oH, oW]``, in the memory format of ``problem.input``."""
    p, outputs = problem, problem.weight.shape[0]
    output = torch.empty(
        (p.input.shape[0], outputs, *p.out_size),
        dtype=p.input.dtype,
        device=p.input.device,
        memory_format=memory_format(p.input),
    )
    if output.numel() == 0:
        return output
    weight = p.weight.permute(2, 3, 0, 1).contiguous()  # [taps, O, C / groups]

    def programs_of(c: Config) -> int:
        return _cdiv(p.pixels, c.BM) * p.groups * _cdiv(p.group_outputs, c.BN)

    config = config or _config(p, "forward", (p.group_outputs, p.slice_channels), programs_of)
    _launch(
        kernels.forward_kernel,
        programs_of(config),
        config,
        p,
        whole=p.slice_channels % config.BK == 0 and p.group_outputs % config.BN == 0,
        weight=weight,
        bias=None if bias is None else bias.contiguous(),
        output=output,
        **_places("output", output),
        tiles=_cdiv(p.group_outputs, config.BN),
        HAS_BIAS=bias is not None,
    )
    return output


def grad_weight(problem: Problem, grad_output: Tensor, config: Config | None = None) -> Tensor:
    """The gradient of the weight, ``[O, C / groups, kH, kW]``. Deterministic: no atomic additions."""
    p = problem
    outputs, group_channels = p.weight.shape[:2]
    if p.pixels == 0:
        return torch.zeros_like(p.weight, memory_format=torch.contiguous_format)

    def tiles_of(c: Config) -> int:
        return p.taps * p.slices * _cdiv(p.slice_channels, c.BN) * _cdiv(p.group_outputs, c.BK)

    widths = (p.slice_channels, p.group_outputs)
    config = config or _config(p, "grad_weight", widths, lambda c: tiles_of(c) * _cdiv(p.pixels, c.BM))
    blocks = _cdiv(p.pixels, config.BM)
    # enough programs for any GPU; a constant, because the rounding depends on the number of splits
    splits = max(1, min(blocks, _cdiv(1024, tiles_of(config))))
    partial = torch.empty(
        (splits, p.taps, group_channels, outputs), dtype=torch.float32, device=p.input.device
    )
    _launch(
        kernels.grad_weight_kernel,
        splits * tiles_of(config),
        config,
        p,
        whole=p.slice_channels % config.BN == 0 and p.group_outputs % config.BK == 0,
        grad_output=_channels_last(grad_output),
        partial=partial,
        tiles=_cdiv(p.group_outputs, config.BK),
        blocks=blocks,
        splits=splits,
    )
    sum = partial.sum(0).view(*p.weight.shape[2:], group_channels, outputs)
    return sum.permute(3, 2, 0, 1).to(p.weight.dtype).contiguous()


def grad_samples(
    problem: Problem,
    grad_output: Tensor,
    want_input: bool,
    want_offset: bool,
    want_mask: bool,
    config: Config | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, offset and mask. The input's is not deterministic: it is added atomically."""
    p = problem
    grad_input = grad_offset = grad_mask = None
    if want_input:
        grad_input = torch.empty(
            p.input.shape, dtype=torch.float32, device=p.input.device, memory_format=torch.channels_last
        ).zero_()
    # one plane per slice; _per_group adds up the planes of a group
    planes = [p.input.shape[0], p.slices * p.taps, *p.out_size]

    def new_field(field: Tensor, groups: int, values: int) -> Tensor:
        dtype = field.dtype if groups == p.slices else torch.float32
        shape = (planes[0], planes[1] * values, *planes[2:])
        return torch.empty(shape, dtype=dtype, device=field.device)

    if want_offset and p.offset is not None:
        grad_offset = new_field(p.offset, p.offset_groups, 2)
    if want_mask and p.mask is not None:
        grad_mask = new_field(p.mask, p.mask_groups, 1)

    def programs_of(c: Config) -> int:
        return _cdiv(p.pixels, c.BM) * p.taps * p.slices

    if p.pixels > 0:
        config = config or _config(p, "grad_samples", (p.slice_channels, p.group_outputs), programs_of)
        _launch(
            kernels.grad_samples_kernel,
            programs_of(config),
            config,
            p,
            whole=p.slice_channels % config.BN == 0 and p.group_outputs % config.BK == 0,
            weight=p.weight.permute(2, 3, 1, 0).contiguous(),  # [taps, C / groups, O]
            grad_output=_channels_last(grad_output),
            grad_input=grad_input,
            grad_offset=grad_offset,
            grad_mask=grad_mask,
            WANT_INPUT=want_input,
            WANT_OFFSET=want_offset,
            WANT_MASK=want_mask,
        )
    if grad_input is not None:
        grad_input = grad_input.to(p.input.dtype).contiguous(memory_format=memory_format(p.input))
    return (
        grad_input,
        _per_group(grad_offset, p.offset, p.offset_groups),
        _per_group(grad_mask, p.mask, p.mask_groups),
    )


def _per_group(planes: Tensor | None, like: Tensor | None, groups: int) -> Tensor | None:
    """Sum a group's slices: ``[N, slices · values, oH, oW]`` to ``[N, groups · values, oH, oW]``."""
    if planes is None or like is None or planes.shape == like.shape:
        return planes
    values = like.shape[1] // groups
    per_slice = planes.unflatten(1, (groups, -1, values))
    return per_slice.sum(2).flatten(1, 2).to(like.dtype)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _strided(field: Tensor | None) -> Tensor | None:
    """Return ``field``, or a contiguous copy if its pixels are not all one stride apart.

    Channels last and a part of a split along the channels need no copy.
    """
    if field is None or field.shape[2] <= 1 or field.stride(2) == field.shape[3] * field.stride(3):
        return field
    return field.contiguous()


def _places(name: str, tensor: Tensor | None) -> dict[str, int]:
    strides = (0, 0, 0) if tensor is None else (*tensor.stride()[:2], tensor.stride(3))
    return dict(zip((f"{name}_image", f"{name}_channel", f"{name}_pixel"), strides, strict=True))


def _extent(tensor: Tensor) -> int:
    """Distance in memory from the first element to the end of the last one, in elements."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _config(problem: Problem, kernel: str, widths: tuple[int, int], programs) -> Config:
    return choose(_target(problem.input.device), kernel, problem.input.dtype, widths, programs)


@cache
def _target(device: torch.device) -> str:
    with _current(device):
        return target_of(INTERPRETED)


def _current(device: torch.device) -> contextlib.AbstractContextManager:
    """Context that makes ``device`` current: Triton uses the current device, not that of the tensors."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def _launch(kernel, programs: int, config: Config, problem: Problem, whole: bool, **arguments) -> None:
    arguments = {**problem.arguments(), **arguments}
    tensors = [a for a in arguments.values() if isinstance(a, Tensor)]
    arguments |= {
        "WIDE": max(map(_extent, tensors)) >= 2**31,
        "WHOLE": whole,
        "UPCAST": INTERPRETED,
        "PRECISION": "tf32" if problem.allow_tf32 else "ieee",
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
    }
    with _current(problem.input.device):
        kernel[(programs,)](
            **{name: arguments[name] for name in kernel.arg_names},
            num_warps=config.warps,
            num_stages=config.stages,
            enable_fp_fusion=True,  # explicit, because Triton warns that the default will change
        )
