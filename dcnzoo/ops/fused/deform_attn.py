"""The calls of the Triton kernels of dcnv3, dcnv4 and ms_deform_attn."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import triton
from torch import Tensor

from .attention_kernels import attention_kernel
from .launch import cdiv, launch

WARPS = 4
UNUSED = dict.fromkeys(("output", "grad_output", "grad_input", "grad_offset", "grad_weight"))
UNUSED |= dict.fromkeys(("WANT_OUTPUT", "WANT_INPUT", "WANT_FIELDS"), False)


@dataclass(frozen=True)
class Call:
    """A call of one of the operators, with the arguments of the kernel.

    Attributes:
        offset, weight: the fields, which may be the same tensor (dcnv4).
        output: shape of the output, ``(N, *queries, groups · channels)``.
        options: arguments of the kernels that are not tensors with gradients.
    """

    input: Tensor
    offset: Tensor
    weight: Tensor
    groups: int
    channels: int
    output: tuple[int, ...]
    options: dict[str, object]

    @property
    def field_type(self) -> torch.dtype:
        """Return the type of offset and weight in kernels: the input's if both have it, else float32."""
        same = self.input.dtype == self.offset.dtype == self.weight.dtype
        return self.input.dtype if same else torch.float32

    def fields(self) -> tuple[Tensor, Tensor]:
        offset = self.offset.to(self.field_type).contiguous()
        return offset, offset if self.weight is self.offset else self.weight.to(self.field_type).contiguous()

    def launch(self, bytes_per_value: int, **arguments) -> None:
        """Launch the kernel, whose threads read vectors of 16 bytes."""
        queries = math.prod(self.output[1:-1])
        parts = self.output[0] * queries * self.groups
        block_d = triton.next_power_of_2(self.channels)
        block_m = max(WARPS * 32 // max(block_d * bytes_per_value // 16, 1), 1)
        arguments = UNUSED | arguments | self.options | {
            "input": self.input.contiguous(), "parts": parts, "queries": queries, "groups": self.groups,
            "D": self.channels, "BLOCK_M": block_m, "BLOCK_D": block_d,
        }  # fmt: skip
        launch(attention_kernel, cdiv(parts, block_m), self.input.device, arguments, warps=WARPS)

    def forward(self) -> Tensor:
        offset, weight = self.fields()
        output = self.input.new_empty(self.output)
        size = self.input.element_size()
        self.launch(size, offset=offset, weight=weight, output=output, WANT_OUTPUT=True)
        return output

    def backward(self, grad_output: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
        """Return the gradients of input and fields (one tensor for dcnv4). They are empty if not needed."""
        offset, weight = self.fields()
        grad_input = torch.zeros(self.input.shape, dtype=torch.float32, device=self.input.device)
        if offset is weight:  # the kernel does not write the padding
            grad_offset = grad_weight = torch.zeros_like(offset)
        else:
            grad_offset, grad_weight = torch.empty_like(offset), torch.empty_like(weight)
        self.launch(
            4, offset=offset, weight=weight, grad_output=grad_output.contiguous(),
            grad_input=grad_input, grad_offset=grad_offset, grad_weight=grad_weight,
            WANT_INPUT=needed[0], WANT_FIELDS=any(needed[1:]),
        )  # fmt: skip
        tensors = (self.input, self.offset, self.weight)
        gradients = (grad_input, grad_offset, grad_weight)
        return tuple(
            gradient.to(tensor.dtype) if is_needed else tensor.new_empty(0)
            for gradient, tensor, is_needed in zip(gradients, tensors, needed, strict=False)
        )


def _layout(*numbers: int) -> dict[str, object]:
    """Return the numbers that say where a query's fields for a group begin."""
    names = ("offset_query", "offset_group", "weight_first", "weight_query", "weight_group")
    return dict(zip(names, numbers, strict=True))


def dcnv3(
    input, offset, mask,
    kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center,
) -> Call:  # fmt: skip
    """Return a call with the positions of KernelGrid (ops/deform_attn/deform_attn_math.h)."""
    points = kernel_size[0] * kernel_size[1] - remove_center
    layout = _layout(2 * points * group, 2 * points, 0, points * group, points)
    if offset is mask:
        layout = _layout(offset.shape[3], 3 * points, 2 * points, offset.shape[3], 3 * points)
    middle = [dilation[a] * (kernel_size[a] - 1) // 2 for a in (0, 1)]
    base_y, base_x = (float(middle[a] - padding[a] - middle[a] * offset_scale) for a in (0, 1))
    height, width = input.shape[1:3]
    grid = {
        "pixels": height * width, "height": height, "width": width, "out_w": offset.shape[2],
        "outers": kernel_size[1], "INNERS": kernel_size[0],
        "removed": kernel_size[0] * kernel_size[1] // 2 if remove_center else -1,
        "stride_y": stride[0], "stride_x": stride[1], "dilation_y": dilation[0], "dilation_x": dilation[1],
        "base_y": base_y, "base_x": base_x, "scale": float(offset_scale),
        "level_sizes": None, "level_starts": None, "LEVELS": False,
    }  # fmt: skip
    output = (*offset.shape[:3], group * group_channels)
    return Call(input, offset, mask, group, group_channels, output, grid | layout)


def dcnv4(
    input, offset_mask,
    kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center,
) -> Call:  # fmt: skip
    numbers = (kernel_size, stride, padding, dilation, group, group_channels, offset_scale, remove_center)
    return dcnv3(input, offset_mask, offset_mask, *numbers)


def ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights) -> Call:
    heads, channels = value.shape[2:]
    levels, points = sampling_locations.shape[3:5]
    total = levels * points
    unused = ("height", "width", "stride_y", "stride_x", "dilation_y", "dilation_x", "base_y", "base_x")
    grid = dict.fromkeys(unused, 0) | {
        "pixels": value.shape[1], "out_w": 1, "outers": levels, "INNERS": points, "removed": -1, "scale": 1.0,
        "level_sizes": spatial_shapes.contiguous(), "level_starts": level_start_index.contiguous(),
        "LEVELS": True,
    }  # fmt: skip
    layout = _layout(2 * total * heads, 2 * total, 0, total * heads, total)
    output = (value.shape[0], sampling_locations.shape[1], heads * channels)
    fields = (sampling_locations, attention_weights)
    return Call(value, *fields, heads, channels, output, grid | layout)


def forward(call: Callable[..., Call]) -> Callable[..., Tensor]:
    @wraps(call)  # keeps its signature
    def kernel(**arguments: Any) -> Tensor:
        return call(**arguments).forward()

    return kernel


def backward(call: Callable[..., Call]) -> Callable[..., tuple[Tensor, ...]]:
    @wraps(call)
    def kernel(grad_output: Tensor, output_mask: list[bool], **arguments: Any) -> tuple[Tensor, ...]:
        return call(**arguments).backward(grad_output, output_mask)

    return kernel
