"""Plans of the Triton kernels of deform_conv: block sizes, memory, launches.

A plan is a function of later calls, or of tensors, with the shapes and strides of the call that it was made
for. It holds the numbers that follow from these, and no tensor.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .._arguments import memory_format
from ..geometry import output_size
from . import kernels
from .available import architecture, entry_of, tf32
from .launch import INTERPRETED, Launch


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
GRADIENTS = ("input", "weight", "offset", "mask", "bias")  # the order of output_mask and of the results
MOST_SPLITS = 32  # grad_weight splits the pixels into at most 32 parts
# In grad_weight, a step takes as long as writing and adding the sums of 12 programs (1.1 µs on an H100 by
# counted instructions; 3.1 MB at 3 TB/s).
PROGRAMS_PER_STEP = 12
POINTS = Config(BLOCK_M=256, BLOCK_N=1, BLOCK_K=1, warps=4, stages=1)
TRANSPOSE_BLOCK = 64
DEPTHWISE_BLOCK = 2048  # pixels · channels of a program without matrix products


class Sizes:
    """The sizes of a call of ``dcnzoo::deform_conv`` or of its backward in two dimensions.

    Attributes:
        axes: with 1, all tensors have one row, and offsets have only x.
        is_depthwise: whether each group has one input channel, so that there are no matrix products.
        block_channels: number of channels with the same offset group and mask group and, unless depthwise,
            the same convolution group.
        pixels: number of output pixels of all images.
        is_wide: whether channels fill matrix products. A single group always does, as in a first layer.
        shared: arguments that several kernels share.
    """

    def __init__(self, call: Any, axes: int = 2) -> None:
        input, weight, offset, mask, groups = call.input, call.weight, call.offset, call.mask, call.groups
        self.device, self.dtype, self.axes, self.groups = input.device, input.dtype, axes, groups
        self.batch, channels, *self.size = input.shape
        self.channels, self.outputs, self.kernel = channels, len(weight), weight.shape[2:]
        self.taps = math.prod(self.kernel)
        self.offset_groups = 1 if offset is None else offset.shape[1] // (axes * self.taps)
        self.mask_groups = 1 if mask is None else mask.shape[1] // self.taps
        self.group_channels, self.group_outputs = weight.shape[1], self.outputs // groups
        self.is_depthwise = self.group_channels == 1 and groups > 1
        share = math.gcd(channels // self.offset_groups, channels // self.mask_groups)
        self.block_channels = share if self.is_depthwise else math.gcd(share, self.group_channels)
        self.blocks = channels // self.block_channels
        self.out_size = output_size(self.size, self.kernel, call.stride, call.padding, call.dilation)
        self.pixels = self.batch * math.prod(self.out_size)
        narrow = min(self.block_channels, self.group_outputs) < LEAST_CHANNELS
        self.is_wide = not self.is_depthwise and (self.blocks == groups == 1 or not narrow)
        self.shared: dict[str, object] = {
            "pixels": self.pixels,
            "out_pixels": math.prod(self.out_size),
            "out_h": self.out_size[0],
            "out_w": self.out_size[1],
            "height": self.size[0],
            "width": self.size[1],
            "taps": self.taps,
            "points": self.blocks * self.taps * self.pixels,
            "channels": channels,
            "group_channels": self.group_channels,
            "outputs": self.outputs,
            "group_outputs": self.group_outputs,
            "block_channels": self.block_channels,
            "group_blocks": max(self.blocks // groups, 1),
            "AXES": axes,
            "UPCAST": INTERPRETED,
            "PRECISION": "tf32" if self.dtype == torch.float32 and tf32() else "ieee",
        }

    def launch(self, kernel: Any, config: Config, **arguments: object) -> Launch:
        blocks = {"BLOCK_M": config.BLOCK_M, "BLOCK_N": config.BLOCK_N, "BLOCK_K": config.BLOCK_K}
        arguments = {**self.shared, **arguments, **blocks}
        return Launch(kernel, arguments, warps=config.warps, stages=config.stages)

    def is_even(self, inputs: int, outputs: int) -> bool:
        """Return whether blocks of so many input and output channels divide the channels."""
        return self.block_channels % inputs == 0 and (self.is_depthwise or self.group_outputs % outputs == 0)

    def rounds(self, programs: int) -> int:
        """Return the number of programs that the busiest multiprocessor runs.

        How many run at a time does not matter: the more there are, the longer each takes.
        """
        return triton.cdiv(programs, _multiprocessors(self.device))

    def config(self, kernel: str, cost: Callable[[Config], float]) -> Config:
        if self.is_depthwise:
            channels = min(triton.next_power_of_2(self.block_channels), 64)
            block = DEPTHWISE_BLOCK // 2 if kernel == "grad_samples" else DEPTHWISE_BLOCK  # registers
            return Config(block // channels, channels, BLOCK_K=1, warps=4, stages=1)
        if not self.is_wide:  # the smallest product; larger blocks or two stages need too many registers
            inputs, outputs = (
                min(max(triton.next_power_of_2(n), LEAST_CHANNELS), 32)
                for n in (self.block_channels, self.group_outputs)
            )
            if kernel == "forward":
                return Config(32, outputs, inputs, warps=2, stages=1)
            return Config(32, inputs, outputs, warps=4, stages=1)
        return choose(architecture(self.device), kernel, self.dtype, cost)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 64  # as in a GPU of medium size
    return torch.cuda.get_device_properties(device).multi_processor_count


def deform_conv(call: Any, config: Config | None = None) -> Callable[[Any], Tensor]:
    """Return the plan of ``dcnzoo::deform_conv``."""
    axes, call = len(call.stride), with_rows(call)
    sizes = Sizes(call, axes)
    points, output = plan_points(sizes, call), plan_output(sizes, call, config)

    def run(call: Any) -> Tensor:
        call = with_rows(call)
        result = output(call.input, call.weight, call.bias, points(call.offset, call.mask))
        return result.squeeze(2) if axes == 1 else result

    return run


def deform_conv_backward(call: Any, config: Config | None = None) -> Callable[[Any], tuple[Tensor, ...]]:
    """Return the plan of the gradients of input, weight, offset, mask and bias; others are empty."""
    axes, call = len(call.stride), with_rows(call)
    needed = dict(zip(GRADIENTS, call.output_mask, strict=True))
    sizes = Sizes(call, axes)
    input_to_last, grad_to_last = to_channels_last(call.input), to_channels_last(call.grad_output)
    needs_samples = needed["input"] or needed["offset"] or needed["mask"]
    points, of_samples = plan_points(sizes, call), plan_grad_samples(sizes, call, needed, config)
    of_weight = plan_grad_weight(sizes, call, config)

    def run(call: Any) -> tuple[Tensor, ...]:
        call = with_rows(call)
        grad_output = call.grad_output
        gradients: dict[str, Tensor] = {}
        if needed["bias"]:
            gradients["bias"] = grad_output.sum((0, 2, 3))
        if needs_samples or needed["weight"]:
            grad_output = grad_to_last(grad_output)
            tensors = {"input": input_to_last(call.input), **points(call.offset, call.mask)}
        if needed["weight"]:
            gradients["weight"] = of_weight(grad_output, tensors)
        if needs_samples:
            gradients |= of_samples(grad_output, call.weight, tensors)
        if axes == 1:
            gradients = {name: g.squeeze(2) if g.dim() == 4 else g for name, g in gradients.items()}
        # an operator's results must not share memory
        return tuple([gradients[n] if n in gradients else grad_output.new_empty(0) for n in GRADIENTS])

    return run


def with_rows(call: Any) -> Any:
    """Return a call in two dimensions: in one dimension, every tensor gets an axis of one row."""
    if len(call.stride) == 2:
        return call
    tensors = {
        name: value.unsqueeze(2)
        for name, value in call._asdict().items()
        if isinstance(value, Tensor) and value.dim() == 3
    }
    return call._replace(
        **tensors, stride=[1, *call.stride], padding=[0, *call.padding], dilation=[1, *call.dilation]
    )


# Plans of the kernels. Without a configuration, they take the one of least cost.


def plan_points(s: Sizes, call: Any) -> Callable[..., dict[str, Tensor]]:
    """Return the plan of the sampling points, 16 bytes per pixel, tap and block of channels.

    Every kernel that samples takes them. See ``points_kernel``.
    """
    geometry = {
        f"{name}_{axis}": getattr(call, name)[a]
        for name in ("stride", "padding", "dilation")
        for a, axis in enumerate("yx")
    }
    launch = s.launch(
        kernels.points_kernel,
        POINTS,
        kernel_w=s.kernel[1],
        **geometry,
        **_strides("offset", _strided(call.offset)),
        **_strides("mask", _strided(call.mask)),
        offset_blocks=s.blocks // s.offset_groups,
        mask_blocks=s.blocks // s.mask_groups,
        HAS_OFFSET=call.offset is not None,
        HAS_MASK=call.mask is not None,
    )
    programs, shape = s.blocks * s.taps * triton.cdiv(s.pixels, POINTS.BLOCK_M), (s.blocks, s.taps, s.pixels)
    # int64 if the index of a pixel and 4 more bits do not fit into int32
    index = torch.int64 if s.batch * math.prod(s.size) >= 2**27 else torch.int32

    def points(offset: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        corners = torch.empty(shape, dtype=index, device=s.device)
        factors = torch.empty((3, *shape), dtype=torch.float32, device=s.device)
        points = {"corners": corners, "factors": factors}
        launch(programs, {"offset": _strided(offset), "mask": _strided(mask), **points})
        return points

    return points


def plan_output(s: Sizes, call: Any, config: Config | None) -> Callable[..., Tensor]:
    """Return the plan of the output, ``[N, O, oH, oW]``, in the memory format of the input."""

    def programs_of(c: Config) -> int:
        return triton.cdiv(s.pixels, c.BLOCK_M) * s.groups * triton.cdiv(s.group_outputs, c.BLOCK_N)

    def cost(c: Config) -> int:
        channels = s.blocks // s.groups * triton.cdiv(s.block_channels, c.BLOCK_K) * c.BLOCK_K
        return s.rounds(programs_of(c)) * c.BLOCK_M * channels * (c.BLOCK_N + SAMPLE_COST)

    config = config or s.config("forward", cost)
    if s.is_depthwise:
        blocks = s.blocks * triton.cdiv(s.block_channels, config.BLOCK_N)
        programs = triton.cdiv(s.pixels, config.BLOCK_M) * blocks * s.group_outputs
        kernel, is_even = kernels.depthwise_forward_kernel, s.is_even(config.BLOCK_N, config.BLOCK_K)
    else:
        programs, kernel = programs_of(config), kernels.forward_kernel
        is_even = s.is_even(config.BLOCK_K, config.BLOCK_N)
    shape, form = (s.batch, s.outputs, *s.out_size), memory_format(call.input)
    launch = s.launch(
        kernel,
        config,
        **_strides("output", torch.empty(shape, device="meta", memory_format=form)),
        HAS_BIAS=call.bias is not None,
        EVEN=is_even,
        tiles=triton.cdiv(s.group_outputs, config.BLOCK_N),
    )
    input_to_last, weight_to_last = to_channels_last(call.input), to_channels_last(call.weight)

    def output(input: Tensor, weight: Tensor, bias: Tensor | None, points: dict[str, Tensor]) -> Tensor:
        result = torch.empty(shape, dtype=s.dtype, device=s.device, memory_format=form)
        if s.is_depthwise:
            weight = weight.reshape(s.outputs, s.taps).t().contiguous()
        else:
            weight = weight_to_last(weight)
        tensors = {"input": input_to_last(input), "weight": weight, "output": result, **points}
        launch(programs, {**tensors, "bias": None if bias is None else bias.contiguous()})
        return result

    return output


def plan_grad_weight(s: Sizes, call: Any, config: Config | None) -> Callable[..., Tensor]:
    """Return the plan of the weight's gradient, ``[O, C / groups, kH, kW]``, without atomic additions."""

    def tiles_of(c: Config) -> int:
        sums = s.group_outputs if s.is_depthwise else triton.cdiv(s.group_outputs, c.BLOCK_K)
        return s.taps * s.blocks * triton.cdiv(s.block_channels, c.BLOCK_N) * sums

    def steps_of(c: Config, splits: int) -> int:
        return triton.cdiv(triton.cdiv(s.pixels, c.BLOCK_M), splits)

    def time(c: Config, splits: int) -> float:
        """Return the time of the busiest multiprocessor plus that of the partial sums, in steps."""
        programs = splits * tiles_of(c)
        return s.rounds(programs) * steps_of(c, splits) + programs / PROGRAMS_PER_STEP

    def splits_of(c: Config) -> int:
        """Return the fastest number of splits among those that fill one, two or three rounds."""
        room = _multiprocessors(s.device)
        most = min(MOST_SPLITS, triton.cdiv(s.pixels, c.BLOCK_M))
        candidates = [max(1, min(most, rounds * room // tiles_of(c))) for rounds in (1, 2, 3)]
        return min(candidates, key=lambda splits: time(c, splits))

    def cost(c: Config) -> float:
        return time(c, splits_of(c)) * c.BLOCK_M * c.BLOCK_N * (c.BLOCK_K + SAMPLE_COST)

    config = config or s.config("grad_weight", cost)
    splits = splits_of(config)
    launch = s.launch(
        kernels.depthwise_grad_weight_kernel if s.is_depthwise else kernels.grad_weight_kernel,
        config,
        EVEN=s.is_even(config.BLOCK_N, config.BLOCK_K),
        tiles=triton.cdiv(s.group_outputs, config.BLOCK_K),
        steps=steps_of(config, splits),
        splits=splits,
    )
    programs, shape = splits * tiles_of(config), (splits, *s.kernel, s.group_channels, s.outputs)
    dtype = call.weight.dtype

    def grad_weight(grad_output: Tensor, sampled: dict[str, Tensor]) -> Tensor:
        if s.pixels == 0:
            return torch.zeros(s.outputs, s.group_channels, *s.kernel, dtype=dtype, device=s.device)
        sums = torch.empty(shape, dtype=torch.float32, device=s.device)
        launch(programs, {"grad_output": grad_output, "partial": sums, **sampled})
        return sums.sum(0).permute(3, 2, 0, 1).to(dtype).contiguous()

    return grad_weight


def plan_grad_samples(
    s: Sizes, call: Any, needed: dict[str, bool], config: Config | None
) -> Callable[..., dict[str, Tensor]]:
    """Return the plan of the needed gradients of input, offset and mask, by name.

    The input's uses atomic additions. The fields' have one plane per block of channels, which are added up.
    """

    def programs_of(c: Config) -> int:
        return triton.cdiv(s.pixels, c.BLOCK_M) * s.taps * s.blocks

    def cost(c: Config) -> int:
        channels = triton.cdiv(s.block_channels, c.BLOCK_N) * c.BLOCK_N
        outputs = triton.cdiv(s.group_outputs, c.BLOCK_K) * c.BLOCK_K
        return s.rounds(programs_of(c)) * c.BLOCK_M * channels * (outputs + SAMPLE_COST)

    config = config or s.config("grad_samples", cost)
    want_input = needed["input"]
    want_offset = needed["offset"] and call.offset is not None
    want_mask = needed["mask"] and call.mask is not None
    launch = s.launch(
        kernels.grad_samples_kernel,
        config,
        EVEN=s.is_even(config.BLOCK_N, config.BLOCK_K),
        READ_ONCE=s.group_outputs <= config.BLOCK_K and not s.is_depthwise,
        DEPTHWISE=s.is_depthwise,
        WANT_INPUT=want_input,
        WANT_OFFSET=want_offset,
        WANT_MASK=want_mask,
    )
    programs, weight_to_last = programs_of(config), to_channels_last(call.weight)
    input_shape, input_from_last = call.input.shape, from_channels_last(call.input.shape, call.input)
    new = partial(torch.empty, dtype=torch.float32, device=s.device)
    fields = {}
    if want_offset:
        fields["offset"] = (s.axes * s.taps, s.offset_groups, call.offset.dtype)
    if want_mask:
        fields["mask"] = (s.taps, s.mask_groups, call.mask.dtype)

    def grad_samples(grad_output: Tensor, weight: Tensor, sampled: dict[str, Tensor]) -> dict[str, Tensor]:
        gradients = {}
        if want_input:
            gradients["input"] = new(input_shape, memory_format=torch.channels_last).zero_()
        for name, (values, groups, dtype) in fields.items():
            planes = (s.batch, s.blocks * values, *s.out_size)
            gradients[name] = new(planes, dtype=dtype if groups == s.blocks else torch.float32)
        tensors = {"weight": weight_to_last(weight), "grad_output": grad_output, **sampled}
        launch(programs, tensors | {f"grad_{name}": gradient for name, gradient in gradients.items()})
        if want_input:
            gradients["input"] = input_from_last(gradients["input"])
        for name, (values, groups, dtype) in fields.items():
            if groups != s.blocks:
                per_block = gradients[name].unflatten(1, (groups, -1, values))
                gradients[name] = per_block.sum(2).flatten(1, 2).to(dtype)
        return gradients

    return grad_samples


# Memory formats


def to_channels_last(like: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function that returns a map or weight in channels-last order."""
    if like.is_contiguous(memory_format=torch.channels_last) or not like.is_contiguous():
        return lambda tensor: tensor.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = like.shape
    transpose = _transpose(batch, channels, height * width)

    def convert(tensor: Tensor) -> Tensor:
        result = torch.empty_like(tensor, memory_format=torch.channels_last)
        transpose(tensor, result)
        return result

    return convert


def from_channels_last(shape: Sequence[int], like: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function that returns a channels-last map in the type and memory format of ``like``."""
    dtype, device = like.dtype, like.device
    if memory_format(like) == torch.channels_last:
        return lambda tensor: tensor.to(dtype)
    batch, channels, height, width = shape
    transpose = _transpose(batch, height * width, channels)

    def convert(tensor: Tensor) -> Tensor:
        result = torch.empty(shape, dtype=dtype, device=device)
        transpose(tensor, result)
        return result

    return convert


def _transpose(batch: int, rows: int, columns: int) -> Callable[[Tensor, Tensor], None]:
    programs = batch * triton.cdiv(rows, TRANSPOSE_BLOCK) * triton.cdiv(columns, TRANSPOSE_BLOCK)
    sizes = {"rows": rows, "columns": columns, "BLOCK_M": TRANSPOSE_BLOCK, "BLOCK_N": TRANSPOSE_BLOCK}
    launch = Launch(kernels.transpose_kernel, sizes)
    return lambda source, result: launch(programs, {"source": source, "result": result})


def _strided(tensor: Tensor | None) -> Tensor | None:
    """Return the offset or mask, or a contiguous copy if its pixels are not all one stride apart.

    Channels-last tensors, and slices of the channels, need no copy.
    """
    if tensor is None or tensor.shape[2] <= 1 or tensor.stride(2) == tensor.shape[3] * tensor.stride(3):
        return tensor
    return tensor.contiguous()


def _strides(name: str, tensor: Tensor | None) -> dict[str, int]:
    strides = (0, 0, 0) if tensor is None else (*tensor.stride()[:2], tensor.stride(3))
    return dict(zip((f"{name}_image", f"{name}_channel", f"{name}_pixel"), strides, strict=True))
