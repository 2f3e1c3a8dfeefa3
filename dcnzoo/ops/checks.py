"""Checks of arguments for kernels that are not compiled: Triton's and plain PyTorch.

The compiled kernels check the same in C++ (``ops/*/*_checks.h``). tests/ops/test_plain.py compares which
calls they refuse, and because of which argument.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._arguments import shape_text
from .geometry import output_size, transposed_size

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MOST = 2**31 - 1  # the largest number: keeps the arithmetic on sizes within 64 bits
MOST_PIXELS = 2**24  # the longest axis: beyond it, neighbouring pixels share a float32 coordinate
# name of an argument, of any operator -> its least value
LEAST = dict.fromkeys(("groups", "group", "group_channels", "stride", "dilation", "kernel_size"), 1)
LEAST |= dict.fromkeys(("padding", "output_padding"), 0)


def require(condition: bool, where: str, expected: object, got: object) -> None:
    if not condition:
        raise RuntimeError(f"{where}: expected {expected}, got {got}")


class Multiple(NamedTuple):
    """The size of an axis that is a multiple of ``factor``, and not smaller than ``least``."""

    factor: int
    least: int = 1

    def __str__(self) -> str:
        return f"n·{self.factor}" if self.factor > 1 else "at least 1" if self.least else "n"


ANY, POSITIVE = Multiple(1, 0), Multiple(1)


class Checks:
    """Checks of one ``call``, a named tuple of arguments; lists among them have ``rank`` values."""

    def __init__(self, op: str, call: Any, rank: int = 2) -> None:
        self.op, self.call, self.rank = op, call, rank

    def require(self, condition: bool, argument: str, expected: object, got: object) -> None:
        require(condition, f"{self.op}: {argument}", expected, got)

    def numbers(self, names: Collection[str]) -> None:
        """Check the numbers called ``names``, if :data:`LEAST` has a least value for them."""
        for name in names:
            value, least = getattr(self.call, name), LEAST.get(name)
            if least is None:
                continue
            values, text = [value], value
            if isinstance(value, Sequence):
                values, text = list(value), shape_text(list(value))
                self.require(len(values) == self.rank, name, f"{self.rank} values", len(values))
            self.require(all(least <= v <= MOST for v in values), name, f"{least} to {MOST}", text)

    def tensor(self, name: str, sizes: Sequence[int | Multiple], dtype: str = "same") -> list:
        """Check type, device and shape of an argument. Return its shape, or an empty list for None.

        Args:
            dtype: ``"floating"``; ``"same"`` as the first argument; ``"wide"``: the same, or float32 beside a
                half type; ``"int64"``.
        """
        tensor, like = getattr(self.call, name), self.call[0]
        if tensor is None:
            return []
        dtypes = {"floating": FLOATING, "int64": (torch.int64,)}.get(dtype, (like.dtype,))
        if dtype == "wide" and like.dtype.itemsize == 2:
            dtypes = (like.dtype, torch.float32)
        if tensor.dtype not in dtypes:
            names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
            text = " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
            self.require(False, name, text, _type_name(tensor))
        self.require(tensor.device == like.device, name, f"device {like.device}", tensor.device)
        shape = list(tensor.shape)
        fits = len(shape) == len(sizes)
        for size, expected in zip(shape, sizes, strict=False):
            if isinstance(expected, Multiple):
                fits &= size % expected.factor == 0 and size >= expected.least
            else:
                fits &= size == expected
        text = ", ".join(map(str, sizes)) + "," * (len(sizes) == 1)
        self.require(fits, name, f"shape ({text})", shape_text(shape))
        return shape

    def output_size(self, first: int, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Return the size of a convolution's output; ``first`` is the input's first spatial axis."""
        stride, padding, dilation = self.call.stride, self.call.padding, self.call.dilation
        for axis, (n, k, pad, spread) in enumerate(zip(size, kernel, padding, dilation, strict=True)):
            least = spread * (k - 1) + 1 - 2 * pad
            what = f"(kernel {k}, dilation {spread}, padding {pad})"
            self.require(n >= least, "input", f"size at least {least} on axis {axis + first} {what}", n)
        return output_size(size, kernel, stride, padding, dilation)


def _type_name(tensor: Tensor) -> str:
    if tensor.dtype in FLOATING:
        return str(tensor.dtype).removeprefix("torch.")
    return tensor.type().rpartition(".")[2].removesuffix("Tensor")  # the C++ name, such as Long


def require_gradient(op: str, grad: Tensor, output: Any, like: Tensor) -> None:
    """Raise unless ``grad`` has the shape of ``output``, and the type and the device of ``like``."""
    where, shape = f"{op} backward: grad_output", shape_text(list(output.shape))
    require(grad.shape == output.shape, where, f"shape {shape}", shape_text(list(grad.shape)))
    kinds = [f"{tensor.dtype} on {tensor.device}" for tensor in (like, grad)]
    require(kinds[0] == kinds[1], where, kinds[0], kinds[1])


# Checks of the operators, as functions of a call


def deform_conv(call: Any) -> None:
    check, (batch, channels, *size) = _convolution("deform_conv", call)
    groups, outputs = call.groups, len(call.weight)
    check.require(outputs % groups == 0, "groups", f"a divisor of the {outputs} output channels", groups)
    _, _, *kernel = check.tensor("weight", [ANY, channels // groups, *[POSITIVE for _ in size]])
    for axis, pixels in enumerate(size):
        expected = f"at most {MOST_PIXELS} pixels on axis {axis + 2} (float64: any number)"
        check.require(pixels <= MOST_PIXELS or call.input.dtype == torch.float64, "input", expected, pixels)
    got, expected = shape_text([*call.input.shape]), "at least 1 pixel on every axis, or a batch of 0"
    check.require(batch == 0 or min(size) > 0, "input", expected, f"shape {got}")
    _check_fields(check, channels, kernel, batch, check.output_size(2, size, kernel), outputs)


def deform_conv_transpose(call: Any) -> None:
    check, (batch, channels, *sizes) = _convolution("deform_conv_transpose", call)
    _, width, *kernels = check.tensor("weight", [channels, POSITIVE, *[POSITIVE for _ in sizes]])
    check.numbers(["output_padding"])
    geometry = (call.stride, call.padding, call.output_padding, call.dilation)
    outputs = transposed_size(sizes, kernels, *geometry)
    for axis, (size, kernel, out) in enumerate(zip(sizes, kernels, outputs, strict=True)):
        step, behind = call.stride[axis], call.output_padding[axis]
        expected = f"less than stride {shape_text(call.stride)}"
        check.require(behind < step, "output_padding", expected, shape_text(call.output_padding))
        numbers = f"kernel {kernel}, stride {step}, padding {call.padding[axis]}, output_padding {behind}"
        expected = f"a size that gives an output of at least 1 on axis {axis + 2} ({numbers}, "
        expected += f"dilation {call.dilation[axis]})"
        check.require(size >= 1 and out >= 1, "input", expected, f"{size}, which gives {out}")
    _check_fields(check, width * call.groups, kernels, batch, sizes, width * call.groups)


def _convolution(op: str, call: Any) -> tuple[Checks, list[int]]:
    """Check the input and the numbers of a convolution, and return the shape of the input."""
    rank, step = call.weight.dim() - 2, call.im2col_step
    shape = shape_text(list(call.weight.shape))
    require(1 <= rank <= 3, f"{op}: weight", "3, 4 or 5 dimensions", f"shape {shape}")
    check = Checks(f"{op}{rank}d", call, rank)
    sizes = check.tensor("input", [ANY, POSITIVE, *[ANY for _ in range(rank)]], "floating")
    check.numbers([name for name in call._fields if name != "output_padding"])
    check.require(step is None or step >= 1, "im2col_step", "at least 1", step)
    expected = f"a divisor of the {sizes[1]} input channels"
    check.require(sizes[1] % call.groups == 0, "groups", expected, call.groups)
    return check, sizes


def _check_fields(
    check: Checks, sampled: int, kernel: Sequence[int], batch: int, places: Sequence[int], outputs: int
) -> None:
    """Check offset, mask and bias. ``places`` is the size of the tensor whose pixels have taps."""
    taps = math.prod(kernel)
    for name, values in (("offset", taps * check.rank), ("mask", taps)):
        shape = check.tensor(name, [batch, Multiple(values), *places], "wide")
        groups = shape[1] // values if shape else 1
        expected = f"a number of groups that divides the {sampled} channels"
        check.require(sampled % groups == 0, name, expected, f"{groups} ({groups * values} / {values})")
    check.tensor("bias", [outputs])


def dcnv3(call: Any) -> None:
    check, points, out = _kernel("dcnv3", call)
    check.tensor("offset", [*out, call.group * points * 2], "wide")
    check.tensor("mask", [*out, call.group * points], "wide")


def dcnv4(call: Any) -> None:
    check, points, out = _kernel("dcnv4", call)
    check.tensor("offset_mask", [*out, -(-call.group * points * 3 // 8) * 8], "wide")


def _kernel(op: str, call: Any) -> tuple[Checks, int, list[int]]:
    """Check input and numbers of dcnv3 or dcnv4. Return the number of points and ``[N, oH, oW]``."""
    check = Checks(op, call)
    batch, height, width, channels = check.tensor("input", [ANY, POSITIVE, POSITIVE, ANY], "floating")
    check.require(height * width <= MOST, "input", f"at most {MOST} pixels", height * width)
    check.numbers(call._fields)
    expected = f"shape (batch, height, width, {call.group}·{call.group_channels}), channels last"
    is_last = channels == call.group * call.group_channels
    check.require(is_last, "input", expected, shape_text([*call.input.shape]))
    check.require(math.isfinite(call.offset_scale), "offset_scale", "a finite number", call.offset_scale)
    points = math.prod(call.kernel_size) - call.remove_center
    is_odd = all(size % 2 == 1 for size in call.kernel_size) and points > 0
    expected = "an odd kernel_size of more than one tap"
    is_valid = is_odd or not call.remove_center
    check.require(is_valid, "remove_center", expected, shape_text(call.kernel_size))
    return check, points, [batch, *check.output_size(1, (height, width), call.kernel_size)]


def ms_deform_attn(call: Any) -> None:
    check = Checks("ms_deform_attn", call)
    batch, pixels, heads, _ = check.tensor("value", [ANY, ANY, POSITIVE, POSITIVE], "floating")
    check.require(pixels <= MOST, "value", f"at most {MOST} pixels", pixels)
    levels, _ = check.tensor("spatial_shapes", [ANY, 2], "int64")
    check.tensor("level_start_index", [levels], "int64")
    sizes = [batch, ANY, heads, levels, ANY, 2]
    _, queries, _, _, points, _ = check.tensor("sampling_locations", sizes, "wide")
    check.tensor("attention_weights", [batch, queries, heads, levels, points], "wide")


def levels(call: Any) -> None:
    """Check that the levels lie within ``value``. This reads values of tensors, which blocks on a GPU."""
    op, pixels = "ms_deform_attn", call.value.shape[1]
    pairs = zip(call.spatial_shapes.tolist(), call.level_start_index.tolist(), strict=True)
    for level, ((height, width), start) in enumerate(pairs):
        got, where = f"({height}, {width}) for level {level}", f"{op}: spatial_shapes"
        require(height >= 1 and width >= 1, where, "at least (1, 1)", got)
        expected = f"at least {start} + {height}·{width} pixels for level {level}"
        expected += " (level_start_index, spatial_shapes)"
        require(0 <= start <= pixels - height * width, f"{op}: value", expected, pixels)


def roi_align(call: Any) -> None:
    _pooling("roi_align", call)


def deform_roi_pool(call: Any) -> None:
    check = _pooling("deform_roi_pool", call)
    check.require(math.isfinite(call.gamma), "gamma", "a finite number", call.gamma)
    check.tensor("offset", [len(call.rois), 2, call.output_h, call.output_w], "floating")


def _pooling(op: str, call: Any) -> Checks:
    check = Checks(op, call)
    check.tensor("input", [ANY, ANY, POSITIVE, POSITIVE], "floating")
    check.tensor("rois", [ANY, 5], "floating")
    bins, most = (call.output_h, call.output_w), 2**15
    check.require(min(bins) >= 1 and max(bins) <= most, "output_size", f"(1, 1) to {(most, most)}", bins)
    ratio, scale = call.sampling_ratio, call.spatial_scale
    check.require(ratio <= 2**22, "sampling_ratio", f"at most {2**22}", ratio)
    check.require(0 < scale < math.inf, "spatial_scale", "a positive number", f"{scale:g}")
    return check


def image_numbers(call: Any) -> None:
    """Check that each RoI is in an image. This reads values of a tensor, which blocks on a GPU."""
    op = type(call).__name__.removesuffix("_arguments")
    for row, image in enumerate(call.rois[:, 0].tolist()):
        got, expected = f"{image:g} in row {row}", f"image numbers in [0, {len(call.input)})"
        require(0 <= image < len(call.input), f"{op}: rois", expected, got)


def nms(call: Any) -> None:
    check = Checks("nms", call)
    number, _ = check.tensor("boxes", [ANY, 4], "floating")
    check.tensor("scores", [number], "floating")
    check.require(0 <= call.iou_threshold <= 1, "iou_threshold", "a number from 0 to 1", call.iou_threshold)
    check.require(call.offset in (0, 1), "offset", "0 or 1", call.offset)
