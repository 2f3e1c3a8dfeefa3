"""Checks of arguments for kernels that are not compiled: Triton's, torchvision's and plain PyTorch.

The compiled kernels check the same in C++ (``ops/*/*_checks.h``), in other words. tests/ops/test_checks.py
compares which calls they refuse, and because of which argument.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._arguments import shape_text

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MOST = 2**31 - 1  # of a number: keeps the arithmetic on sizes within 64 bits
MOST_PIXELS = 2**24  # of an axis: beyond it, neighbouring pixels would get the same float32 coordinate


def require(condition: bool, where: str, expected: object, got: object) -> None:
    if not condition:
        raise RuntimeError(f"{where}: expected {expected}, got {got}")


class Shape:
    """The shape and the type of an argument, as in the comments of the functions: ``"N, G·taps·rank, *out"``.

    ``*out`` are several axes. A size is the same in all arguments of a call; the first one that has it
    determines it. A product determines its first factor, which must be positive.

    ``dtype``: ``"floating"``; ``"same"`` as the first argument; ``"wide"``: the same, or float32 beside a
    half type; ``"int64"``.
    """

    def __init__(self, axes: str, dtype: str = "same") -> None:
        self.dtype, self.axes = dtype, [axis.strip().split("·") for axis in axes.split(",")]

    def _expected(self, sizes: Mapping[str, Any], dims: int) -> list[tuple[str, int, int]]:
        """For each axis, its unknown factor or "", the product of the known ones, and the least size."""
        result: list[tuple[str, int, int]] = []
        for first, *others in self.axes:
            known = math.prod(sizes[name] if name in sizes else int(name) for name in others)
            if first[0] == "*":
                several = [("", size, 0) for size in sizes.get(first[1:], ())]
                result += several or [(first, 1, 0)] * (dims - len(self.axes) + 1)
            elif first.isdigit() or first in sizes:
                result.append(("", known * (int(first) if first.isdigit() else sizes[first]), 0))
            else:
                result.append((first, known, bool(others)))
        return result

    def require(self, where: str, sizes: dict[str, Any], tensor: Tensor) -> None:
        """Check the shape, and add its sizes to ``sizes``."""
        expected = self._expected(sizes, tensor.dim())
        fits = len(expected) == tensor.dim() and all(
            (size % known == 0 and size >= least) if name else size == known
            for (name, known, least), size in zip(expected, tensor.shape, strict=True)
        )
        if not fits:
            axes = [
                f"{name}·{known}" if name and known > 1 else name or str(known) for name, known, _ in expected
            ]
            text = f"shape ({', '.join(axes)}{',' * (len(axes) == 1)})"
            require(False, where, text, shape_text(list(tensor.shape)))
        for (name, known, _), size in zip(expected, tensor.shape, strict=True):
            if name[:1] == "*":
                sizes.setdefault(name[1:], []).append(size)
            elif name:
                sizes[name] = size // known


def require_tensors(
    op: str, shapes: Mapping[str, Shape], call: Any, sizes: dict[str, Any], like: Tensor
) -> dict[str, Any]:
    """Check type, device and shape of the arguments that ``shapes`` names. None is no tensor.

    Args:
        sizes: known sizes by their names; the others are added.
        like: the first argument.
    """
    for name, shape in shapes.items():
        tensor, where = getattr(call, name), f"{op}: {name}"
        if tensor is None:
            continue
        dtypes = {"floating": FLOATING, "int64": (torch.int64,)}.get(shape.dtype, (like.dtype,))
        if shape.dtype == "wide" and like.dtype.itemsize == 2:
            dtypes = (like.dtype, torch.float32)
        require(tensor.dtype in dtypes, where, " or ".join(map(str, dtypes)), tensor.dtype)
        require(tensor.device == like.device, where, f"device {like.device}", tensor.device)
        shape.require(where, sizes, tensor)
    return sizes


def require_numbers(op: str, call: Any, rank: int = 1, **least: int) -> None:
    """Check that arguments are at least this. A list has ``rank`` values."""
    for name, minimum in least.items():
        value, where = getattr(call, name), f"{op}: {name}"
        values = value if isinstance(value, Sequence) else [value]
        require(values is not value or len(values) == rank, where, f"{rank} values", values)
        expected = f"at least {minimum} and at most {MOST}"
        require(all(minimum <= v <= MOST for v in values), where, expected, value)


def require_positive(op: str, name: str, sizes: Mapping[str, Any], *axes: str) -> None:
    for axis in axes:
        values = sizes[axis] if isinstance(sizes[axis], list) else [sizes[axis]]
        require(min(values) > 0, f"{op}: {name}", f"{axis} of at least 1", shape_text(values))


def require_gradient(op: str, grad: Tensor, output: Any, like: Tensor) -> None:
    """The gradient of an output has its shape, and the type and the device of ``like``."""
    where, shape = f"{op} backward: grad_output", shape_text(list(output.shape))
    require(grad.shape == output.shape, where, f"shape {shape}", shape_text(list(grad.shape)))
    kinds = [f"{tensor.dtype} on {tensor.device}" for tensor in (like, grad)]
    require(kinds[0] == kinds[1], where, kinds[0], kinds[1])


# Operators: functions of a call, a named tuple


def deform_conv(call: Any) -> None:
    _convolution("deform_conv", call, transposed=False)


def deform_conv_transpose(call: Any) -> None:
    _convolution("deform_conv_transpose", call, transposed=True)


_INPUT = {"input": Shape("N, C, *in", "floating")}
_WEIGHT = {"weight": Shape("O, width, *kernel")}
_WEIGHT_TRANSPOSED = {"weight": Shape("C, width, *kernel")}
# out: of the output, or of a transposed convolution's input
_FIELDS = {"offset": Shape("N, G·taps·rank, *out", "wide"), "mask": Shape("N, M·taps, *out", "wide")}
_BIAS = {"bias": Shape("O")}


def _convolution(op: str, call: Any, transposed: bool) -> None:
    input, weight, groups = call.input, call.weight, call.groups
    rank = weight.dim() - 2
    got = f"shape {shape_text(list(weight.shape))}"
    require(1 <= rank <= 3, f"{op}: weight", "3, 4 or 5 dimensions", got)
    op = f"{op}{rank}d"
    require(input.dim() == rank + 2, f"{op}: input", f"{rank + 2} dimensions", shape_text(list(input.shape)))
    sizes = require_tensors(op, _INPUT, call, {"rank": rank}, input)
    require_positive(op, "input", sizes, "C")
    require_numbers(op, call, groups=1)
    step = call.im2col_step
    require(step is None or step >= 1, f"{op}: im2col_step", "at least 1", step)
    counts = {"input": sizes["C"]} if transposed else {"input": sizes["C"], "output": len(weight)}
    for kind, count in counts.items():
        require(count % groups == 0, f"{op}: groups", f"a divisor of the {count} {kind} channels", groups)
    paddings = {"padding": 0, "output_padding": 0} if transposed else {"padding": 0}
    require_numbers(op, call, rank, stride=1, dilation=1, **paddings)
    if not transposed:
        sizes["width"] = sizes["C"] // groups
    require_tensors(op, _WEIGHT_TRANSPOSED if transposed else _WEIGHT, call, sizes, input)
    require_positive(op, "weight", sizes, "kernel")
    if transposed:
        require_positive(op, "weight", sizes, "width")
    sizes["taps"] = math.prod(sizes["kernel"])
    if transposed:
        _require_output_of_transposed(op, sizes, call)
        sizes.update(O=sizes["width"] * groups, out=sizes["in"])
    else:
        fits = input.dtype == torch.float64 or max(sizes["in"]) <= MOST_PIXELS
        require(
            fits,
            f"{op}: input",
            f"at most {MOST_PIXELS} pixels on an axis (float64: any number)",
            sizes["in"],
        )
        if sizes["N"] > 0:
            require_positive(op, "input", sizes, "in")
        sizes["out"] = _output_size(op, 2, sizes["in"], sizes["kernel"], call)
    sampled = sizes["O" if transposed else "C"]
    require_tensors(op, _FIELDS, call, sizes, input)
    for name, axis in (("offset", "G"), ("mask", "M")):
        expected = f"a number of groups that divides the {sampled} channels"
        require(sampled % sizes.get(axis, 1) == 0, f"{op}: {name}", expected, sizes.get(axis))
    require_tensors(op, _BIAS, call, sizes, input)


def _require_output_of_transposed(op: str, sizes: Mapping[str, Any], call: Any) -> None:
    for axis, (size, kernel) in enumerate(zip(sizes["in"], sizes["kernel"], strict=True)):
        step, behind = call.stride[axis], call.output_padding[axis]
        require(
            behind < step, f"{op}: output_padding", f"less than stride {call.stride}", call.output_padding
        )
        out = (size - 1) * step - 2 * call.padding[axis] + call.dilation[axis] * (kernel - 1) + behind + 1
        expected = f"a size that gives an output of at least 1 on axis {axis + 2}"
        require(size >= 1 and out >= 1, f"{op}: input", expected, f"{size}, which gives {out}")


_MAP_LAST = {"input": Shape("N, H, W, C", "floating")}
_DCNV3 = {"offset": Shape("N, *out, group·points·2", "wide"), "mask": Shape("N, *out, group·points", "wide")}
_DCNV4 = {"offset_mask": Shape("N, *out, width", "wide")}


def dcnv3(call: Any) -> None:
    _require_kernel("dcnv3", call, _DCNV3)


def dcnv4(call: Any) -> None:
    _require_kernel("dcnv4", call, _DCNV4)


def _require_kernel(op: str, call: Any, fields: Mapping[str, Shape]) -> None:
    sizes = require_tensors(op, _MAP_LAST, call, {}, call.input)
    require_positive(op, "input", sizes, "H", "W")
    require(
        sizes["H"] * sizes["W"] <= MOST, f"{op}: input", f"at most {MOST} pixels", sizes["H"] * sizes["W"]
    )
    require_numbers(op, call, 2, kernel_size=1, stride=1, padding=0, dilation=1)
    require_numbers(op, call, group=1, group_channels=1)
    expected = f"{call.group} · {call.group_channels} channels on the last axis"
    require(sizes["C"] == call.group * call.group_channels, f"{op}: input", expected, sizes["C"])
    require(math.isfinite(call.offset_scale), f"{op}: offset_scale", "a finite number", call.offset_scale)
    points = math.prod(call.kernel_size) - call.remove_center
    is_odd = all(size % 2 == 1 for size in call.kernel_size) and points > 0
    expected = "an odd kernel_size of more than one tap"
    require(is_odd or not call.remove_center, f"{op}: remove_center", expected, call.kernel_size)
    sizes["out"] = _output_size(op, 1, (sizes["H"], sizes["W"]), call.kernel_size, call)
    sizes.update(group=call.group, points=points, width=-(-call.group * points * 3 // 8) * 8)
    require_tensors(op, fields, call, sizes, call.input)


def _output_size(op: str, first: int, size: Sequence[int], kernel: Sequence[int], call: Any) -> list[int]:
    """The size of a convolution's output; ``first`` is the input's first spatial axis."""
    result = []
    for axis, (n, k) in enumerate(zip(size, kernel, strict=True)):
        pad, spread = call.padding[axis], call.dilation[axis]
        least = spread * (k - 1) + 1 - 2 * pad
        what = f"(kernel {k}, dilation {spread}, padding {pad})"
        require(n >= least, f"{op}: input", f"size at least {least} on axis {axis + first} {what}", n)
        result.append((n - least) // call.stride[axis] + 1)
    return result


_ATTENTION = {
    "value": Shape("N, S, heads, D", "floating"),
    "spatial_shapes": Shape("L, 2", "int64"),
    "level_start_index": Shape("L", "int64"),
    "sampling_locations": Shape("N, Q, heads, L, P, 2", "wide"),
    "attention_weights": Shape("N, Q, heads, L, P", "wide"),
}


def ms_deform_attn(call: Any) -> None:
    op = "ms_deform_attn"
    sizes = require_tensors(op, _ATTENTION, call, {}, call.value)
    require_positive(op, "value", sizes, "heads", "D")
    require(sizes["S"] <= MOST, f"{op}: value", f"at most {MOST} pixels", sizes["S"])


def levels(call: Any) -> None:
    """Check numbers in tensors, for which a GPU would have to wait: the levels lie within ``value``."""
    op, pixels = "ms_deform_attn", call.value.shape[1]
    levels = zip(call.spatial_shapes.tolist(), call.level_start_index.tolist(), strict=True)
    for level, ((height, width), start) in enumerate(levels):
        got, where = f"({height}, {width}) for level {level}", f"{op}: spatial_shapes"
        require(height >= 1 and width >= 1, where, "at least (1, 1)", got)
        expected = f"at least {start} + {height}·{width} pixels for level {level}"
        require(0 <= start <= pixels - height * width, f"{op}: value", expected, pixels)


_MAPS = {"input": Shape("N, C, H, W", "floating")}
_ROIS, _ROTATED_ROIS = {"rois": Shape("K, 5", "floating")}, {"rois": Shape("K, 6", "floating")}
_BIN_OFFSETS = {"offset": Shape("K, 2, output_h, output_w", "floating")}


def roi_align(call: Any) -> None:
    _require_pooling("roi_align", call, _ROIS)
    require(call.pool_mode in (0, 1), "roi_align: pool_mode", "0 (maximum) or 1 (average)", call.pool_mode)


def roi_align_rotated(call: Any) -> None:
    _require_pooling("roi_align_rotated", call, _ROTATED_ROIS)


def deform_roi_pool(call: Any) -> None:
    sizes = _require_pooling("deform_roi_pool", call, _ROIS)
    require(math.isfinite(call.gamma), "deform_roi_pool: gamma", "a finite number", call.gamma)
    require_tensors("deform_roi_pool", _BIN_OFFSETS, call, sizes, call.input)


def _require_pooling(op: str, call: Any, rois: Mapping[str, Shape]) -> dict[str, Any]:
    sizes = require_tensors(op, {**_MAPS, **rois}, call, {}, call.input)
    require_positive(op, "input", sizes, "H", "W")
    bins = sizes["output_h"], sizes["output_w"] = call.output_h, call.output_w
    require(
        min(bins) >= 1 and max(bins) <= 2**15, f"{op}: output_size", f"from (1, 1) to {(2**15, 2**15)}", bins
    )
    ratio, scale = call.sampling_ratio, call.spatial_scale
    require(ratio <= 2**22, f"{op}: sampling_ratio", f"at most {2**22}", ratio)
    require(0 < scale < math.inf, f"{op}: spatial_scale", "a positive number", scale)
    return sizes


def image_numbers(call: Any) -> None:
    """Check numbers in a tensor, for which a GPU would have to wait: each RoI is in an image."""
    op = type(call).__name__.removesuffix("_arguments")
    for row, image in enumerate(call.rois[:, 0].tolist()):
        got, expected = f"{image:g} in row {row}", f"image numbers in [0, {len(call.input)})"
        require(0 <= image < len(call.input), f"{op}: rois", expected, got)


def nms(call: Any) -> None:
    shapes = {"boxes": Shape("N, 4", "floating"), "scores": Shape("N", "floating")}
    require_tensors("nms", shapes, call, {}, call.boxes)
    threshold = call.iou_threshold
    require(0 <= threshold <= 1, "nms: iou_threshold", "a number from 0 to 1", threshold)
    require(call.offset in (0, 1), "nms: offset", "0 or 1", call.offset)


def nms_rotated(call: Any) -> None:
    shapes = {"boxes": Shape("N, 5", "floating"), "scores": Shape("N", "floating")}
    require_tensors("nms_rotated", shapes, call, {}, call.boxes)
    # not below 0: mmcv's 0 on the CPU is the number before it
    require(call.iou_threshold <= 1, "nms_rotated: iou_threshold", "at most 1", call.iou_threshold)


def box_iou_rotated(call: Any) -> None:
    shapes = {"boxes1": Shape("M, 5", "floating"), "boxes2": Shape("M, 5" if call.aligned else "N, 5")}
    require_tensors("box_iou_rotated", shapes, call, {}, call.boxes1)
