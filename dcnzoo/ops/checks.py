"""Checks of arguments for kernels that are not compiled: Triton's and plain PyTorch.

The compiled kernels check the same in C++ (``ops/*/*_checks.h``). tests/ops/test_plain.py compares which
calls they refuse, and because of which argument.
"""

import math
from collections.abc import Collection, Sequence
from functools import cache
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


class Size(NamedTuple):
    """An axis's size: ``known``, or a multiple of it (``unknown`` times ``known``), at least ``least``."""

    unknown: str  # the name of the factor, or ""
    known: int
    least: int = 0

    def fits(self, size: int) -> bool:
        if not self.unknown:
            return size == self.known
        return size % self.known == 0 and size >= self.least

    def __str__(self) -> str:
        if not self.unknown:
            return str(self.known)
        return f"n·{self.known}" if self.known > 1 else "at least 1" if self.least else "n"


class Checks:
    """Checks of one ``call``, a named tuple of arguments.

    Attributes:
        sizes: name -> known size: digits, the call's numbers, sizes of the tensors checked so far.
        rank: number of values in a list argument, and number of the axes ``*in`` of a map.
    """

    def __init__(self, op: str, call: Any, rank: int = 2) -> None:
        self.op, self.call, self.rank = op, call, rank
        self.sizes: dict[str, Any] = {n: v for n, v in call._asdict().items() if type(v) is int}
        self.sizes |= {str(digit): digit for digit in range(10)}

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

    def tensor(self, name: str, axes: str, dtype: str = "same", hint: str = "") -> None:
        """Check type, device and shape of an argument, which may be None.

        Args:
            axes: as in the comments of the functions: ``"N, G·taps, *out"``. A size has the same value in all
                arguments; the first one determines it. A product determines its first factor, which must be
                positive, as must sizes with a ``+``. ``*out`` stands for several axes.
            dtype: ``"floating"``; ``"same"`` as the first argument; ``"wide"``: the same, or float32 beside a
                half type; ``"int64"``.
        """
        tensor, like = getattr(self.call, name), self.call[0]
        if tensor is None:
            return
        dtypes = {"floating": FLOATING, "int64": (torch.int64,)}.get(dtype, (like.dtype,))
        if dtype == "wide" and like.dtype.itemsize == 2:
            dtypes = (like.dtype, torch.float32)
        if tensor.dtype not in dtypes:
            names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
            text = " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
            self.require(False, name, text, _type_name(tensor))
        self.require(tensor.device == like.device, name, f"device {like.device}", tensor.device)
        expected = [size for axis in _parsed(axes) for size in self._expected(*axis)]
        if len(expected) != tensor.dim() or not all(map(Size.fits, expected, tensor.shape)):
            texts = ", ".join(map(str, expected)) + "," * (len(expected) == 1)
            self.require(False, name, f"shape ({texts})", shape_text(list(tensor.shape)) + hint)
        for (unknown, known, _), size in zip(expected, tensor.shape, strict=True):
            if unknown.startswith("*"):  # one of several axes
                self.sizes.setdefault(unknown[1:], []).append(size)
            elif unknown:
                self.sizes[unknown] = size // known

    def _expected(self, first: str, others: Sequence[str], least: int) -> list[Size]:
        """Return the sizes that one of the ``axes`` of :meth:`tensor` stands for."""
        known = math.prod(self.sizes[name] for name in others)
        if first.startswith("*"):
            sizes = self.sizes.get(first[1:])
            return [Size(first, 1, least)] * self.rank if sizes is None else [Size("", n) for n in sizes]
        if first in self.sizes:
            return [Size("", known * self.sizes[first])]
        return [Size(first, known, least)]

    def output_size(self, first: int, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Return the size of a convolution's output; ``first`` is the input's first spatial axis."""
        stride, padding, dilation = self.call.stride, self.call.padding, self.call.dilation
        for axis, (n, k, pad, spread) in enumerate(zip(size, kernel, padding, dilation, strict=True)):
            least = spread * (k - 1) + 1 - 2 * pad
            what = f"(kernel {k}, dilation {spread}, padding {pad})"
            self.require(n >= least, "input", f"size at least {least} on axis {axis + first} {what}", n)
        return output_size(size, kernel, stride, padding, dilation)


@cache
def _parsed(axes: str) -> list[tuple[str, list[str], int]]:
    """Return the first factor, the others and the least size of each of the ``axes``."""
    result = []
    for axis in axes.split(", "):
        first, *others = axis.rstrip("+").split("·")
        result.append((first, others, int(axis.endswith("+") or bool(others))))
    return result


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
    check = _convolution("deform_conv", call)
    sizes, groups, outputs = check.sizes, call.groups, len(call.weight)
    check.require(outputs % groups == 0, "groups", f"a divisor of the {outputs} output channels", groups)
    sizes["width"] = sizes["C"] // groups
    weight, offset = call.weight, call.offset
    # with torchvision's order of arguments, the weight is passed as the offset
    swapped = offset is not None and offset.dim() == weight.dim() and len(weight) == sizes["N"]
    swapped = swapped and offset.shape[1] > 0 and sizes["C"] % offset.shape[1] == 0
    hint = " (the order is input, weight, offset; torchvision's is in dcnzoo.compat.torchvision)"
    check.tensor("weight", "O, width, *kernel+", hint=hint if swapped else "")
    for axis, size in enumerate(sizes["in"]):
        expected = f"at most {MOST_PIXELS} pixels on axis {axis + 2} (float64: any number)"
        check.require(size <= MOST_PIXELS or call.input.dtype == torch.float64, "input", expected, size)
    got, expected = shape_text([*call.input.shape]), "at least 1 pixel on every axis, or a batch of 0"
    check.require(sizes["N"] == 0 or min(sizes["in"]) > 0, "input", expected, f"shape {got}")
    sizes["out"] = check.output_size(2, sizes["in"], sizes["kernel"])
    _check_fields(check, sizes["C"])


def deform_conv_transpose(call: Any) -> None:
    check = _convolution("deform_conv_transpose", call)
    sizes = check.sizes
    check.tensor("weight", "C, width+, *kernel+")
    check.numbers(["output_padding"])
    geometry = (call.stride, call.padding, call.output_padding, call.dilation)
    outputs = transposed_size(sizes["in"], sizes["kernel"], *geometry)
    for axis, (size, kernel, out) in enumerate(zip(sizes["in"], sizes["kernel"], outputs, strict=True)):
        step, behind = call.stride[axis], call.output_padding[axis]
        expected = f"less than stride {shape_text(call.stride)}"
        check.require(behind < step, "output_padding", expected, shape_text(call.output_padding))
        numbers = f"kernel {kernel}, stride {step}, padding {call.padding[axis]}, output_padding {behind}"
        expected = f"a size that gives an output of at least 1 on axis {axis + 2} ({numbers}, "
        expected += f"dilation {call.dilation[axis]})"
        check.require(size >= 1 and out >= 1, "input", expected, f"{size}, which gives {out}")
    sizes.update(O=sizes["width"] * call.groups, out=sizes["in"])
    _check_fields(check, sizes["O"])


def _convolution(op: str, call: Any) -> Checks:
    """Check the input and the numbers of a convolution."""
    rank, step = call.weight.dim() - 2, call.im2col_step
    shape = shape_text(list(call.weight.shape))
    require(1 <= rank <= 3, f"{op}: weight", "3, 4 or 5 dimensions", f"shape {shape}")
    check = Checks(f"{op}{rank}d", call, rank)
    check.tensor("input", "N, C+, *in", "floating")
    check.numbers([name for name in call._fields if name != "output_padding"])
    check.require(step is None or step >= 1, "im2col_step", "at least 1", step)
    channels, groups = check.sizes["C"], call.groups
    check.require(channels % groups == 0, "groups", f"a divisor of the {channels} input channels", groups)
    return check


def _check_fields(check: Checks, sampled: int) -> None:
    """Check offset, mask and bias. ``out`` is the output's size, or the input's if transposed."""
    check.sizes.update(rank=check.rank, taps=math.prod(check.sizes["kernel"]))
    check.tensor("offset", "N, G·taps·rank, *out", "wide")
    check.tensor("mask", "N, M·taps, *out", "wide")
    for name, axis in (("offset", "G"), ("mask", "M")):
        groups = check.sizes.get(axis, 1)
        expected, taps = f"a number of groups that divides the {sampled} channels", check.sizes["taps"]
        each = taps * check.rank if name == "offset" else taps
        check.require(sampled % groups == 0, name, expected, f"{groups} ({groups * each} / {each})")
    check.tensor("bias", "O")


def dcnv3(call: Any) -> None:
    check = _kernel("dcnv3", call)
    check.tensor("offset", "N, *out, group·points·2", "wide")
    check.tensor("mask", "N, *out, group·points", "wide")


def dcnv4(call: Any) -> None:
    check = _kernel("dcnv4", call)
    check.sizes["width"] = -(-call.group * check.sizes["points"] * 3 // 8) * 8
    check.tensor("offset_mask", "N, *out, width", "wide")


def _kernel(op: str, call: Any) -> Checks:
    """Check the input and the numbers of dcnv3 and dcnv4."""
    check = Checks(op, call)
    check.tensor("input", "N, H+, W+, C", "floating")
    sizes = check.sizes
    pixels, channels = sizes["H"] * sizes["W"], call.group * call.group_channels
    check.require(pixels <= MOST, "input", f"at most {MOST} pixels", pixels)
    check.numbers(call._fields)
    expected = f"shape (batch, height, width, {call.group}·{call.group_channels}), channels last"
    check.require(sizes["C"] == channels, "input", expected, shape_text([*call.input.shape]))
    check.require(math.isfinite(call.offset_scale), "offset_scale", "a finite number", call.offset_scale)
    points = math.prod(call.kernel_size) - call.remove_center
    is_odd = all(size % 2 == 1 for size in call.kernel_size) and points > 0
    expected = "an odd kernel_size of more than one tap"
    is_valid = is_odd or not call.remove_center
    check.require(is_valid, "remove_center", expected, shape_text(call.kernel_size))
    sizes.update(points=points, out=check.output_size(1, (sizes["H"], sizes["W"]), call.kernel_size))
    return check


def ms_deform_attn(call: Any) -> None:
    check = Checks("ms_deform_attn", call)
    check.tensor("value", "N, S, heads+, D+", "floating")
    check.require(check.sizes["S"] <= MOST, "value", f"at most {MOST} pixels", check.sizes["S"])
    check.tensor("spatial_shapes", "L, 2", "int64")
    check.tensor("level_start_index", "L", "int64")
    check.tensor("sampling_locations", "N, Q, heads, L, P, 2", "wide")
    check.tensor("attention_weights", "N, Q, heads, L, P", "wide")


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
    check.tensor("offset", "K, 2, output_h, output_w", "floating")


def _pooling(op: str, call: Any) -> Checks:
    check = Checks(op, call)
    check.tensor("input", "N, C, H+, W+", "floating")
    check.tensor("rois", "K, 5", "floating")
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
    check.tensor("boxes", "N, 4", "floating")
    check.tensor("scores", "N", "floating")
    check.require(0 <= call.iou_threshold <= 1, "iou_threshold", "a number from 0 to 1", call.iou_threshold)
    check.require(call.offset in (0, 1), "offset", "0 or 1", call.offset)
