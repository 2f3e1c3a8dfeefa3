"""Plans of the Triton kernels of dcnv3, dcnv4 and ms_deform_attn."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .attention_kernels import attention_kernel
from .launch import Launch

WARPS = 4


class Sampling(NamedTuple):
    """What differs between the operators.

    Attributes:
        tensors: returns a call's tensors by their names in the kernel. The fields ``offset`` and ``weight``
            may be the same tensor (dcnv4).
        output: shape of the output, ``(N, *queries, groups · channels)``.
        numbers: other arguments of the kernel.
    """

    tensors: Callable[[Any], dict[str, Tensor]]
    groups: int
    channels: int
    output: tuple[int, ...]
    numbers: dict[str, object]

    def launch(self, bytes_per_value: int, **wanted: bool) -> Callable[..., None]:
        """Prepare the launch of the kernel, whose threads read vectors of 16 bytes."""
        queries = math.prod(self.output[1:-1])
        parts = self.output[0] * queries * self.groups
        block_d = triton.next_power_of_2(self.channels)
        block_m = max(WARPS * 32 // max(block_d * bytes_per_value // 16, 1), 1)
        arguments = self.numbers | {
            "WANT_OUTPUT": False, "WANT_INPUT": False, "WANT_FIELDS": False, **wanted,
            "parts": parts, "queries": queries, "groups": self.groups,
            "D": self.channels, "BLOCK_M": block_m, "BLOCK_D": block_d,
        }  # fmt: skip
        return partial(Launch(attention_kernel, arguments, warps=WARPS), triton.cdiv(parts, block_m))

    def contiguous(self, call: Any) -> dict[str, Tensor]:
        """Return the tensors for the kernel. Fields have the input's type if both have it, else float32."""
        tensors = self.tensors(call)
        dtype, offset, weight = tensors["input"].dtype, tensors["offset"], tensors["weight"]
        if not dtype == offset.dtype == weight.dtype:
            dtype = torch.float32
        result = {name: tensor.contiguous() for name, tensor in tensors.items()}
        result["offset"] = result["offset"].to(dtype)
        result["weight"] = result["offset"] if weight is offset else result["weight"].to(dtype)
        return result


def forward(sampling_of: Callable[[Any], Sampling], call: Any) -> Callable[[Any], Tensor]:
    """Return the plan of an operator."""
    sampling = sampling_of(call)
    launch = sampling.launch(call[0].element_size(), WANT_OUTPUT=True)

    def run(call: Any) -> Tensor:
        output = call[0].new_empty(sampling.output)
        launch({"output": output, **sampling.contiguous(call)})
        return output

    return run


def backward(sampling_of: Callable[[Any], Sampling], call: Any) -> Callable[[Any], tuple[Tensor, ...]]:
    """Return the plan of the gradients of input and fields, which are one tensor for dcnv4."""
    sampling, needed = sampling_of(call), call.output_mask
    launch = sampling.launch(4, WANT_INPUT=needed[0], WANT_FIELDS=any(needed[1:]))

    def run(call: Any) -> tuple[Tensor, ...]:
        originals, tensors = sampling.tensors(call), sampling.contiguous(call)
        offset, weight = tensors["offset"], tensors["weight"]
        grad_input = torch.zeros_like(tensors["input"], dtype=torch.float32)
        if offset is weight:  # the kernel does not write the padding
            grad_offset = grad_weight = torch.zeros_like(offset)
        else:
            grad_offset, grad_weight = torch.empty_like(offset), torch.empty_like(weight)
        named = {"grad_input": grad_input, "grad_offset": grad_offset, "grad_weight": grad_weight}
        launch({"grad_output": call.grad_output.contiguous(), **named, **tensors})
        likes = (originals["input"], originals["offset"], originals["weight"])
        gradients = zip(named.values(), likes, needed, strict=False)
        return tuple(
            [g.to(like.dtype) if is_needed else like.new_empty(0) for g, like, is_needed in gradients]
        )

    return run


def _layout(*numbers: int) -> dict[str, object]:
    """Return the numbers that say where a query's fields for a group begin."""
    names = ("offset_query", "offset_group", "weight_first", "weight_query", "weight_group")
    return dict(zip(names, numbers, strict=True))


def dcnv3(call: Any) -> Sampling:
    points = math.prod(call.kernel_size) - call.remove_center
    layout = _layout(2 * points * call.group, 2 * points, 0, points * call.group, points)

    def tensors(call: Any) -> dict[str, Tensor]:
        return {"input": call.input, "offset": call.offset, "weight": call.mask}

    return _on_grid(call, tensors, call.offset.shape, layout)


def dcnv4(call: Any) -> Sampling:
    points, shape = math.prod(call.kernel_size) - call.remove_center, call.offset_mask.shape
    layout = _layout(shape[3], 3 * points, 2 * points, shape[3], 3 * points)

    def tensors(call: Any) -> dict[str, Tensor]:
        return {"input": call.input, "offset": call.offset_mask, "weight": call.offset_mask}

    return _on_grid(call, tensors, shape, layout)


def _on_grid(call: Any, tensors: Callable, shape: torch.Size, layout: dict[str, object]) -> Sampling:
    """Return the positions of KernelGrid (ops/deform_attn/deform_attn_math.h) for fields of this shape."""
    kernel, stride, dilation, scale = call.kernel_size, call.stride, call.dilation, float(call.offset_scale)
    middle = [dilation[a] * (kernel[a] - 1) // 2 for a in (0, 1)]
    base_y, base_x = (float(middle[a] - call.padding[a] - middle[a] * scale) for a in (0, 1))
    height, width = call.input.shape[1:3]
    grid = {
        "pixels": height * width, "height": height, "width": width, "out_w": shape[2],
        "outers": kernel[1], "INNERS": kernel[0],
        "removed": kernel[0] * kernel[1] // 2 if call.remove_center else -1,
        "stride_y": stride[0], "stride_x": stride[1], "dilation_y": dilation[0], "dilation_x": dilation[1],
        "base_y": base_y, "base_x": base_x, "scale": scale, "LEVELS": False,
    }  # fmt: skip
    output = (*shape[:3], call.group * call.group_channels)
    return Sampling(tensors, call.group, call.group_channels, output, grid | layout)


def ms_deform_attn(call: Any) -> Sampling:
    batch, queries, heads, levels, points, _ = call.sampling_locations.shape
    total, channels = levels * points, call.value.shape[3]
    unused = ("height", "width", "stride_y", "stride_x", "dilation_y", "dilation_x", "base_y", "base_x")
    grid = dict.fromkeys(unused, 0) | {
        "pixels": call.value.shape[1], "out_w": 1, "outers": levels, "INNERS": points, "removed": -1,
        "scale": 1.0, "LEVELS": True,
    }  # fmt: skip
    layout = _layout(2 * total * heads, 2 * total, 0, total * heads, total)

    def tensors(call: Any) -> dict[str, Tensor]:
        return {
            "input": call.value,
            "offset": call.sampling_locations,
            "weight": call.attention_weights,
            "level_sizes": call.spatial_shapes,
            "level_starts": call.level_start_index,
        }

    return Sampling(tensors, heads, channels, (batch, queries, heads * channels), grid | layout)
