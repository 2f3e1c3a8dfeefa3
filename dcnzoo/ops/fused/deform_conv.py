"""The calls of the fused kernels: block sizes, sampling points, launches."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .._arguments import memory_format
from ..geometry import output_size
from . import kernels
from .available import architecture, entry_of
from .launch import INTERPRETED, cdiv, launch


class Config(NamedTuple):
    """Block sizes and launch options of a kernel.

    A program computes ``BLOCK_M`` pixels by ``BLOCK_N`` channels of the result and sums over ``BLOCK_K``
    channels at a time. In grad_weight it computes ``BLOCK_N`` input by ``BLOCK_K`` output channels and sums
    over ``BLOCK_M`` pixels at a time.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    warps: int
    stages: int


def choose(target: str, kernel: str, dtype: torch.dtype, cost: Callable[[Config], float]) -> Config:
    """Return the configuration of least cost. Among equals, it is the first in the table.

    Args:
        cost: an estimate of a configuration's time for the call, in any unit.
    """
    kind = "float32" if dtype == torch.float32 else "half"
    return min((Config(*sizes) for sizes in entry_of(target)[kernel][kind]), key=cost)


LEAST_CHANNELS = 16  # with fewer, most of a matrix product on tensor cores is padding
# A sample costs as much time as the products with this many outputs (counted instructions on sm_90).
SAMPLE_COST = 256
MOST_SPLITS = 32  # grad_weight splits the pixels into at most 32 parts
# In grad_weight, a step takes as long as writing and adding the sums of 12 programs (1.1 µs on an H100 by
# counted instructions; 3.1 MB at 3 TB/s).
PROGRAMS_PER_STEP = 12
POINTS = Config(BLOCK_M=256, BLOCK_N=1, BLOCK_K=1, warps=4, stages=1)
TRANSPOSE = Config(BLOCK_M=64, BLOCK_N=64, BLOCK_K=1, warps=4, stages=1)
DEPTHWISE_BLOCK = 2048  # pixels · channels of a program without matrix products


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
    axes: int = 2  # with 1, all tensors have one row, and offsets have only x

    @cached_property
    def taps(self) -> int:
        return math.prod(self.weight.shape[2:])

    @cached_property
    def offset_groups(self) -> int:
        return 1 if self.offset is None else self.offset.shape[1] // (self.axes * self.taps)

    @cached_property
    def mask_groups(self) -> int:
        return 1 if self.mask is None else self.mask.shape[1] // self.taps

    @cached_property
    def is_depthwise(self) -> bool:
        """Return whether each group has one input channel, so that there are no matrix products."""
        return self.weight.shape[1] == 1 and self.groups > 1

    @cached_property
    def block_channels(self) -> int:
        """Return the number of channels with the same offset group and mask group and, unless depthwise, the
        same convolution group."""
        channels = self.input.shape[1]
        share = math.gcd(channels // self.offset_groups, channels // self.mask_groups)
        return share if self.is_depthwise else math.gcd(share, channels // self.groups)

    @cached_property
    def blocks(self) -> int:
        return self.input.shape[1] // self.block_channels

    @cached_property
    def group_outputs(self) -> int:
        return self.weight.shape[0] // self.groups

    @cached_property
    def out_size(self) -> tuple[int, int]:
        sizes = (self.input.shape[2:], self.weight.shape[2:])
        height, width = output_size(*sizes, self.stride, self.padding, self.dilation)
        return height, width

    @cached_property
    def pixels(self) -> int:
        """Return the number of output pixels of all images."""
        return self.input.shape[0] * math.prod(self.out_size)

    @cached_property
    def is_wide(self) -> bool:
        """Return whether channels fill matrix products. A single group always does, as in a first layer."""
        narrow = min(self.block_channels, self.group_outputs) < LEAST_CHANNELS
        return not self.is_depthwise and (self.blocks == self.groups == 1 or not narrow)

    @cached_property
    def points(self) -> tuple[Tensor, Tensor]:
        """Return sampling points, 16 bytes per pixel, tap and block of channels. See ``points_kernel``."""
        shape = (self.blocks, self.taps, self.pixels)
        # int64 if the index of a pixel and 4 more bits do not fit into int32
        many = self.input.shape[0] * math.prod(self.input.shape[2:]) >= 2**27
        corners = self.input.new_empty(shape, dtype=torch.int64 if many else torch.int32)
        factors = self.input.new_empty((3, *shape), dtype=torch.float32)
        offset, mask = _strided(self.offset), _strided(self.mask)
        _launch(
            kernels.points_kernel,
            self.blocks * self.taps * cdiv(self.pixels, POINTS.BLOCK_M),
            POINTS,
            self,
            offset=offset,
            mask=mask,
            corners=corners,
            factors=factors,
            height=self.input.shape[2],
            **{f"{name}_{axis}": getattr(self, name)[a]
               for name in ("stride", "padding", "dilation") for a, axis in enumerate("yx")},
            kernel_w=self.weight.shape[3],
            **_places("offset", offset),
            **_places("mask", mask),
            offset_blocks=self.blocks // self.offset_groups,
            mask_blocks=self.blocks // self.mask_groups,
            AXES=self.axes,
            HAS_OFFSET=offset is not None,
            HAS_MASK=mask is not None,
        )  # fmt: skip
        return corners, factors

    @cached_property
    def arguments(self) -> dict[str, object]:
        """Arguments that several kernels share."""
        channels, outputs = self.input.shape[1], self.weight.shape[0]
        return {
            "pixels": self.pixels,
            "out_pixels": math.prod(self.out_size),
            "out_h": self.out_size[0],
            "out_w": self.out_size[1],
            "width": self.input.shape[3],
            "taps": self.taps,
            "points": self.blocks * self.taps * self.pixels,
            "channels": channels,
            "group_channels": channels // self.groups,
            "outputs": outputs,
            "group_outputs": self.group_outputs,
            "block_channels": self.block_channels,
            "group_blocks": max(self.blocks // self.groups, 1),
        }

    @cached_property
    def sampled(self) -> dict[str, Tensor]:
        """Return the input and its sampling points, arguments of every kernel that samples."""
        corners, factors = self.points
        return {"input": to_channels_last(self.input), "corners": corners, "factors": factors}


def to_channels_last(tensor: Tensor) -> Tensor:
    """Return a map or weight in channels-last order."""
    if tensor.is_contiguous(memory_format=torch.channels_last) or not tensor.is_contiguous():
        return tensor.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = tensor.shape
    result = torch.empty_like(tensor, memory_format=torch.channels_last)
    _transpose(tensor, result, batch, channels, height * width)
    return result


def from_channels_last(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a channels-last map in the type and memory format of ``like``."""
    if memory_format(like) == torch.channels_last:
        return tensor.to(like.dtype)
    batch, channels, height, width = tensor.shape
    result = torch.empty(tensor.shape, dtype=like.dtype, device=tensor.device)
    _transpose(tensor, result, batch, height * width, channels)
    return result


def _transpose(source: Tensor, result: Tensor, batch: int, rows: int, columns: int) -> None:
    if source.numel() == 0:
        return
    tiles = cdiv(rows, TRANSPOSE.BLOCK_M) * cdiv(columns, TRANSPOSE.BLOCK_N)
    sizes = {"rows": rows, "columns": columns, "BLOCK_M": TRANSPOSE.BLOCK_M, "BLOCK_N": TRANSPOSE.BLOCK_N}
    arguments = {"source": source, "result": result, **sizes}
    launch(kernels.transpose_kernel, batch * tiles, source.device, arguments)


def forward(problem: Problem, bias: Tensor | None, config: Config | None = None) -> Tensor:
    """Return the output, ``[N, O, oH, oW]``, in the memory format of ``problem.input``."""
    p, outputs = problem, problem.weight.shape[0]
    output = torch.empty(
        (p.input.shape[0], outputs, *p.out_size),
        dtype=p.input.dtype,
        device=p.input.device,
        memory_format=memory_format(p.input),
    )
    if output.numel() == 0:
        return output

    def programs_of(c: Config) -> int:
        return cdiv(p.pixels, c.BLOCK_M) * p.groups * cdiv(p.group_outputs, c.BLOCK_N)

    def cost(c: Config) -> int:
        channels = p.blocks // p.groups * cdiv(p.block_channels, c.BLOCK_K) * c.BLOCK_K
        return _rounds(p, programs_of(c)) * c.BLOCK_M * channels * (c.BLOCK_N + SAMPLE_COST)

    config = config or _config(p, "forward", cost)
    shared = {
        **p.sampled,
        **_places("output", output),
        "output": output,
        "bias": None if bias is None else bias.contiguous(),
        "HAS_BIAS": bias is not None,
    }
    if p.is_depthwise:
        blocks = p.blocks * cdiv(p.block_channels, config.BLOCK_N)
        programs = cdiv(p.pixels, config.BLOCK_M) * blocks * p.group_outputs
        weight, is_even = p.weight.reshape(outputs, p.taps).t().contiguous(), _is_even(p, config)
        kernel = kernels.depthwise_forward_kernel
    else:
        programs, weight, kernel = programs_of(config), to_channels_last(p.weight), kernels.forward_kernel
        is_even = p.block_channels % config.BLOCK_K == 0 and p.group_outputs % config.BLOCK_N == 0
    tiles = cdiv(p.group_outputs, config.BLOCK_N)
    _launch(kernel, programs, config, p, **shared, EVEN=is_even, weight=weight, tiles=tiles)
    return output


def grad_weight(problem: Problem, grad_output: Tensor, config: Config | None = None) -> Tensor:
    """Return the gradient of the weight, ``[O, C / groups, kH, kW]``, without atomic additions."""
    p = problem
    outputs, group_channels = p.weight.shape[:2]
    if p.pixels == 0:
        return torch.zeros_like(p.weight, memory_format=torch.contiguous_format)

    def tiles_of(c: Config) -> int:
        sums = p.group_outputs if p.is_depthwise else cdiv(p.group_outputs, c.BLOCK_K)
        return p.taps * p.blocks * cdiv(p.block_channels, c.BLOCK_N) * sums

    def steps_of(c: Config, splits: int) -> int:
        return cdiv(cdiv(p.pixels, c.BLOCK_M), splits)

    def time(c: Config, splits: int) -> float:
        """Return the time of the busiest multiprocessor plus that of the partial sums, in steps."""
        programs = splits * tiles_of(c)
        return _rounds(p, programs) * steps_of(c, splits) + programs / PROGRAMS_PER_STEP

    def splits_of(c: Config) -> int:
        """Return the fastest number of splits among those that fill one, two or three rounds."""
        room = _multiprocessors(p.input.device)
        most = min(MOST_SPLITS, cdiv(p.pixels, c.BLOCK_M))
        candidates = [max(1, min(most, rounds * room // tiles_of(c))) for rounds in (1, 2, 3)]
        return min(candidates, key=lambda splits: time(c, splits))

    def cost(c: Config) -> float:
        return time(c, splits_of(c)) * c.BLOCK_M * c.BLOCK_N * (c.BLOCK_K + SAMPLE_COST)

    config = config or _config(p, "grad_weight", cost)
    splits = splits_of(config)
    partial = torch.empty(
        (splits, p.taps, group_channels, outputs), dtype=torch.float32, device=p.input.device
    )
    _launch(
        kernels.depthwise_grad_weight_kernel if p.is_depthwise else kernels.grad_weight_kernel,
        splits * tiles_of(config),
        config,
        p,
        **p.sampled,
        EVEN=_is_even(p, config),
        grad_output=to_channels_last(grad_output),
        partial=partial,
        tiles=cdiv(p.group_outputs, config.BLOCK_K),
        steps=steps_of(config, splits),
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
    """Return the gradients of input, offset and mask. The input's uses atomic additions."""
    p = problem
    grad_input = grad_offset = grad_mask = None
    if want_input:
        grad_input = torch.empty(
            p.input.shape, dtype=torch.float32, device=p.input.device, memory_format=torch.channels_last
        ).zero_()
    # one plane per channel block; _per_group adds up the planes of a group
    planes = [p.input.shape[0], p.blocks * p.taps, *p.out_size]

    def new_planes(like: Tensor, groups: int, values: int) -> Tensor:
        dtype = like.dtype if groups == p.blocks else torch.float32
        shape = (planes[0], planes[1] * values, *planes[2:])
        return torch.empty(shape, dtype=dtype, device=like.device)

    if want_offset and p.offset is not None:
        grad_offset = new_planes(p.offset, p.offset_groups, p.axes)
    if want_mask and p.mask is not None:
        grad_mask = new_planes(p.mask, p.mask_groups, 1)

    def programs_of(c: Config) -> int:
        return cdiv(p.pixels, c.BLOCK_M) * p.taps * p.blocks

    def cost(c: Config) -> int:
        channels = cdiv(p.block_channels, c.BLOCK_N) * c.BLOCK_N
        outputs = cdiv(p.group_outputs, c.BLOCK_K) * c.BLOCK_K
        return _rounds(p, programs_of(c)) * c.BLOCK_M * channels * (outputs + SAMPLE_COST)

    if p.pixels > 0:
        config = config or _config(p, "grad_samples", cost)
        _launch(
            kernels.grad_samples_kernel,
            programs_of(config),
            config,
            p,
            **p.sampled,
            EVEN=_is_even(p, config),
            READ_ONCE=p.group_outputs <= config.BLOCK_K and not p.is_depthwise,
            DEPTHWISE=p.is_depthwise,
            AXES=p.axes,
            weight=to_channels_last(p.weight),
            grad_output=to_channels_last(grad_output),
            grad_input=grad_input,
            grad_offset=grad_offset,
            grad_mask=grad_mask,
            WANT_INPUT=want_input,
            WANT_OFFSET=want_offset,
            WANT_MASK=want_mask,
        )
    if grad_input is not None:
        grad_input = from_channels_last(grad_input, p.input)
    return (
        grad_input,
        _per_group(grad_offset, p.offset, p.offset_groups),
        _per_group(grad_mask, p.mask, p.mask_groups),
    )


def backward(problem: Problem, grad_output: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
    """Return the gradients of input, weight, offset, mask and bias; those not needed are empty."""
    results = [grad_output.new_empty(0) for _ in range(5)]  # an operator's results must not share memory
    if needed[4]:
        results[4] = grad_output.sum((0, 2, 3))
    if any(needed[:4]):
        grad_output = to_channels_last(grad_output)
    if needed[1]:
        results[1] = grad_weight(problem, grad_output)
    if needed[0] or needed[2] or needed[3]:
        gradients = grad_samples(problem, grad_output, needed[0], needed[2], needed[3])
        for i, gradient in zip((0, 2, 3), gradients, strict=True):
            if gradient is not None:
                results[i] = gradient
    return tuple(results)


def _per_group(planes: Tensor | None, like: Tensor | None, groups: int) -> Tensor | None:
    """Sum a group's blocks: ``[N, blocks · values, oH, oW]`` to ``[N, groups · values, oH, oW]``."""
    if planes is None or like is None or planes.shape == like.shape:
        return planes
    values = like.shape[1] // groups
    per_block = planes.unflatten(1, (groups, -1, values))
    return per_block.sum(2).flatten(1, 2).to(like.dtype)


def _strided(tensor: Tensor | None) -> Tensor | None:
    """Return the offset or mask, or a contiguous copy if its pixels are not all one stride apart.

    Channels-last tensors, and slices of the channels, need no copy.
    """
    if tensor is None or tensor.shape[2] <= 1 or tensor.stride(2) == tensor.shape[3] * tensor.stride(3):
        return tensor
    return tensor.contiguous()


def _places(name: str, tensor: Tensor | None) -> dict[str, int]:
    strides = (0, 0, 0) if tensor is None else (*tensor.stride()[:2], tensor.stride(3))
    return dict(zip((f"{name}_image", f"{name}_channel", f"{name}_pixel"), strides, strict=True))


def _is_even(p: Problem, config: Config) -> bool:
    """Return whether the blocks divide the channels."""
    return p.block_channels % config.BLOCK_N == 0 and (
        p.is_depthwise or p.group_outputs % config.BLOCK_K == 0
    )


def _config(problem: Problem, kernel: str, cost: Callable[[Config], float]) -> Config:
    p = problem
    if p.is_depthwise:
        channels = min(triton.next_power_of_2(p.block_channels), 64)
        block = DEPTHWISE_BLOCK // 2 if kernel == "grad_samples" else DEPTHWISE_BLOCK  # registers
        return Config(block // channels, channels, BLOCK_K=1, warps=4, stages=1)
    if not p.is_wide:  # the smallest product; larger blocks or two stages would need too many registers
        inputs, outputs = (
            min(max(triton.next_power_of_2(n), LEAST_CHANNELS), 32)
            for n in (p.block_channels, p.group_outputs)
        )
        if kernel == "forward":
            return Config(32, outputs, inputs, warps=2, stages=1)
        return Config(32, inputs, outputs, warps=4, stages=1)
    return choose(architecture(problem.input.device), kernel, problem.input.dtype, cost)


def _rounds(problem: Problem, programs: int) -> int:
    """Return the number of programs that the busiest multiprocessor runs.

    How many run at a time does not matter: the more there are, the longer each takes.
    """
    return cdiv(programs, _multiprocessors(problem.input.device))


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 64  # as in a GPU of medium size
    return torch.cuda.get_device_properties(device).multi_processor_count


def _launch(kernel, programs: int, config: Config, problem: Problem, **arguments) -> None:
    arguments = {
        **problem.arguments,
        **arguments,
        "UPCAST": INTERPRETED,
        "PRECISION": "tf32" if problem.allow_tf32 else "ieee",
        "BLOCK_M": config.BLOCK_M,
        "BLOCK_N": config.BLOCK_N,
        "BLOCK_K": config.BLOCK_K,
    }
    device = problem.input.device
    launch(kernel, programs, device, arguments, warps=config.warps, stages=config.stages)
