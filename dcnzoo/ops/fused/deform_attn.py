"""The calls of the Triton kernels of dcnv3, dcnv4 and ms_deform_attn."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import attention_kernels as kernels
from .launch import cdiv, launch

WARPS = 4


@dataclass(frozen=True)
class Call:
    """A call of one of the operators, in the form of the kernels.

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
        """The type of the kernels' fields: that of the input if both have it, else float32."""
        same = self.input.dtype == self.offset.dtype == self.weight.dtype
        return self.input.dtype if same else torch.float32

    def fields(self) -> tuple[Tensor, Tensor]:
        offset = self.offset.to(self.field_type).contiguous()
        return offset, offset if self.weight is self.offset else self.weight.to(self.field_type).contiguous()

    def launch(self, kernel, bytes_per_value: int, **arguments) -> None:
        """Launch a kernel whose threads read vectors of 16 bytes."""
        queries = 1
        for size in self.output[1:-1]:
            queries *= size
        parts = self.output[0] * queries * self.groups
        block_d = triton.next_power_of_2(self.channels)
        block_m = max(WARPS * 32 // max(block_d * bytes_per_value // 16, 1), 1)
        arguments |= self.options | {
            "input": self.input.contiguous(), "parts": parts, "queries": queries, "groups": self.groups,
            "D": self.channels, "BLOCK_M": block_m, "BLOCK_D": block_d,
        }  # fmt: skip
        launch(kernel, cdiv(parts, block_m), self.input.device, arguments, warps=WARPS)

    def forward(self) -> Tensor:
        offset, weight = self.fields()
        output = self.input.new_empty(self.output)
        size = self.input.element_size()
        self.launch(kernels.forward_kernel, size, offset=offset, weight=weight, output=output)
        return output

    def backward(self, grad_output: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
        """Gradients of input, offset and weight; empty tensors for those that are not needed."""
        offset, weight = self.fields()
        of_fields = needed[1] or needed[2]
        grad_input = torch.zeros(self.input.shape, dtype=torch.float32, device=self.input.device)
        if offset is weight:  # the kernel does not write the padding
            grad_offset = grad_weight = torch.zeros_like(offset)
        else:
            grad_offset, grad_weight = torch.empty_like(offset), torch.empty_like(weight)
        self.launch(
            kernels.backward_kernel, 4, offset=offset, weight=weight, grad_output=grad_output.contiguous(),
            grad_input=grad_input, grad_offset=grad_offset, grad_weight=grad_weight,
            WANT_INPUT=needed[0], WANT_FIELDS=of_fields,
        )  # fmt: skip
        tensors = (self.input, self.offset, self.weight)
        gradients = (grad_input, grad_offset, grad_weight)
        return tuple(
            gradient.to(tensor.dtype) if is_needed else tensor.new_empty(0)
            for gradient, tensor, is_needed in zip(gradients, tensors, needed, strict=True)
        )


def _layout(offset: tuple[int, int], weight: tuple[int, int, int]) -> dict[str, object]:
    """Where fields begin: (query, group) strides of offsets; first, (query, group) strides of weights."""
    names = ("offset_query", "offset_group", "weight_first", "weight_query", "weight_group")
    return dict(zip(names, (*offset, *weight), strict=True))


def _kernel_grid(
    input: Tensor,  # [N, H, W, C]
    out_w: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    offset_scale: float,
    remove_center: bool,
) -> dict[str, object]:
    """The positions of KernelGrid (ops/deform_attn/deform_attn_math.h)."""
    middle = [dilation[a] * (kernel_size[a] - 1) // 2 for a in (0, 1)]
    base = [float(middle[a] - padding[a] - middle[a] * offset_scale) for a in (0, 1)]
    return {
        "pixels": input.shape[1] * input.shape[2], "height": input.shape[1], "width": input.shape[2],
        "out_w": out_w, "outers": kernel_size[1], "INNERS": kernel_size[0],
        "removed": kernel_size[0] * kernel_size[1] // 2 if remove_center else -1,
        "stride_y": stride[0], "stride_x": stride[1], "dilation_y": dilation[0], "dilation_x": dilation[1],
        "base_y": base[0], "base_x": base[1], "scale": float(offset_scale),
        "level_sizes": None, "level_starts": None, "LEVELS": False,
    }  # fmt: skip


def _dcnv3(
    input, offset, mask, kernel_size, stride, padding, dilation, group, group_channels, offset_scale,
    remove_center,
) -> Call:  # fmt: skip
    geometry = (kernel_size, stride, padding, dilation, offset_scale, remove_center)
    grid = _kernel_grid(input, offset.shape[2], *geometry)
    points = kernel_size[0] * kernel_size[1] - remove_center
    layout = _layout((2 * points * group, 2 * points), (0, points * group, points))
    output = (*offset.shape[:3], group * group_channels)
    return Call(input, offset, mask, group, group_channels, output, grid | layout)


def dcnv3(*arguments) -> Tensor:
    return _dcnv3(*arguments).forward()


def dcnv3_backward(grad_output: Tensor, *arguments) -> tuple[Tensor, ...]:
    return _dcnv3(*arguments[:-1]).backward(grad_output, arguments[-1])


def _dcnv4(
    input, offset_mask, kernel_size, stride, padding, dilation, group, group_channels, offset_scale,
    remove_center,
) -> Call:  # fmt: skip
    geometry = (kernel_size, stride, padding, dilation, offset_scale, remove_center)
    grid = _kernel_grid(input, offset_mask.shape[2], *geometry)
    points = kernel_size[0] * kernel_size[1] - remove_center
    width = offset_mask.shape[3]
    layout = _layout((width, 3 * points), (2 * points, width, 3 * points))
    output = (*offset_mask.shape[:3], group * group_channels)
    return Call(input, offset_mask, offset_mask, group, group_channels, output, grid | layout)


def dcnv4(*arguments) -> Tensor:
    return _dcnv4(*arguments).forward()


def dcnv4_backward(grad_output: Tensor, *arguments) -> tuple[Tensor, ...]:
    needed = arguments[-1]
    return _dcnv4(*arguments[:-1]).backward(grad_output, [*needed, needed[1]])[:2]


def _ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights) -> Call:
    heads, channels = value.shape[2:]
    levels, points = sampling_locations.shape[3:5]
    total = levels * points
    unused = ("height", "width", "stride_y", "stride_x", "dilation_y", "dilation_x", "base_y", "base_x")
    grid = dict.fromkeys(unused, 0) | {
        "pixels": value.shape[1], "out_w": 1, "outers": levels, "INNERS": points, "removed": -1, "scale": 1.0,
        "level_sizes": spatial_shapes.contiguous(), "level_starts": level_start_index.contiguous(),
        "LEVELS": True,
    }  # fmt: skip
    layout = _layout((2 * total * heads, 2 * total), (0, total * heads, total))
    output = (value.shape[0], sampling_locations.shape[1], heads * channels)
    fields = (sampling_locations, attention_weights)
    return Call(value, *fields, heads, channels, output, grid | layout)


def ms_deform_attn(*arguments) -> Tensor:
    return _ms_deform_attn(*arguments).forward()


def ms_deform_attn_backward(grad_output: Tensor, *arguments) -> tuple[Tensor, ...]:
    return _ms_deform_attn(*arguments[:-1]).backward(grad_output, arguments[-1])
