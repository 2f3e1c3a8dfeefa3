"""The functions of mmcv's compiled module ``mmcv._ext``, with its signatures.

As in mmcv, tensors named ``output`` and ``grad_…`` belong to the caller and are written in place. The scratch
buffers ``columns``, ``ones`` and ``buff`` are not used. Python loads this file under the name ``mmcv._ext``
(see :mod:`dcnzoo.compat.mmcv`), hence the absolute imports.

It has the functions that MMDetection 3.3 uses. This file has those that call dcnzoo's operators, ``plain``
those in plain PyTorch. Every other name is a function that raises ``NotImplementedError``, because
``mmcv.ops`` looks up all names when it is imported.
"""

from collections.abc import Callable

import torch
from torch import Tensor

import dcnzoo.ops
from dcnzoo.compat.mmcv.deform_conv import as_read, check_groups
from dcnzoo.compat.mmcv.plain import (  # noqa: F401  functions of the module
    carafe_backward,
    carafe_forward,
    nms_match,
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softnms,
)
from dcnzoo.compat.signatures import takes, without_autocast

# Alternatives to operators that are not provided, by the beginning of their names
INSTEAD = {
    "roi_pool_": "roi_align, or torchvision.ops.roi_pool",
    "bbox_overlaps": "mmdet.structures.bbox.bbox_overlaps",
    "carafe_naive": "mmcv.ops.carafe",
    "softmax_focal_loss": "mmcv.ops.sigmoid_focal_loss, or torch.nn.functional.cross_entropy",
    "sync_bn": "torch.nn.SyncBatchNorm, norm_cfg=dict(type='SyncBN')",
}


def __getattr__(name: str) -> Callable:
    if name.startswith("_"):
        raise AttributeError(name)
    alternatives = (text for start, text in INSTEAD.items() if name.startswith(start))
    instead = next(alternatives, "mmcv with compiled operators instead of mmcv-lite")

    def missing(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f"mmcv.ops: {name}: this operator of compiled mmcv is not provided by dcnzoo; use {instead}"
        )

    vars(missing)["instead"] = instead
    return missing


def get_compiler_version() -> str:
    return "none (dcnzoo's operators)"


get_compiling_cuda_version = get_compiler_version


# Deformable convolution


def _add_gradients(
    grad_output: Tensor, inputs: tuple, geometry: tuple, scale: float = 1.0, **targets: Tensor
) -> None:
    """Add the gradients of ``inputs`` (input, weight, offset, mask) to the tensors that ``targets`` names."""
    names = ("input", "weight", "offset", "mask", "bias")
    needed = [name in targets for name in names]
    gradients = torch.ops.dcnzoo._deform_conv_backward(grad_output, *inputs, *geometry, needed)
    for name, gradient in zip(names, gradients, strict=True):
        if name not in targets:
            continue
        target = targets[name]
        if gradient.shape != target.shape:  # as_read has read only the first values of each image
            values = gradient.flatten(1)
            unread = target[0].numel() - values.shape[1]
            gradient = torch.nn.functional.pad(values, (0, unread)).view(target.shape)
        target.add_(gradient, alpha=scale)


V1 = "kW kH dW dH padW padH dilationW dilationH group deformable_group"
V2 = "kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w group deformable_group with_bias"


def _geometry(options: dict[str, int]) -> tuple:
    """Return the operator's geometry. Kernel size and deformable groups follow from the tensors."""
    pairs = ((options[f"{name}H"], options[f"{name}W"]) for name in ("d", "pad", "dilation"))
    return *pairs, options["group"], options["im2col_step"]


@without_autocast
@takes(f"input weight offset output columns ones {V1} im2col_step")
def deform_conv_forward(input, weight, offset, output, deformable_group, **options) -> None:
    check_groups("deform_conv_forward", deformable_group, input, weight, offset=offset)
    output.copy_(dcnzoo.ops.deform_conv2d(input, weight, offset, None, None, *_geometry(options)))


@without_autocast
@takes(f"input offset grad_output grad_input grad_offset weight columns {V1} im2col_step")
def deform_conv_backward_input(input, weight, offset, grad_output, **options) -> None:
    targets = dict(input=options["grad_input"], offset=options["grad_offset"])
    _add_gradients(grad_output, (input, weight, offset, None), _geometry(options), **targets)


@without_autocast
@takes(f"input offset grad_output grad_weight columns ones {V1} scale im2col_step")
def deform_conv_backward_parameters(input, offset, grad_output, grad_weight, scale, **options) -> None:
    # mmcv does not pass the weight; its gradient does not depend on it, so any tensor of its shape works
    inputs = (input, grad_weight, offset, None)
    _add_gradients(grad_output, inputs, _geometry(options), scale, weight=grad_weight)


def _modulated(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, output: Tensor, options: dict[str, int]
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple]:
    """Return the operator's tensors, with offset and mask as mmcv reads them, and its geometry."""
    groups, size = options["deformable_group"], output.shape[2:]
    check_groups("modulated_deform_conv2d", groups, input, weight, offset=offset, mask=mask)
    tensors = (input, weight, as_read(offset, "offset", size), as_read(mask, "mask", size))
    pairs = ((options[f"{name}_h"], options[f"{name}_w"]) for name in ("stride", "pad", "dilation"))
    return tensors, (*pairs, options["group"], None)


@without_autocast
@takes(f"input weight bias ones offset mask output columns {V2}")
def modulated_deform_conv_forward(input, weight, bias, offset, mask, output, with_bias, **options) -> None:
    tensors, geometry = _modulated(input, weight, offset, mask, output, options)
    output.copy_(dcnzoo.ops.deform_conv2d(*tensors, bias if with_bias else None, *geometry))


@without_autocast
@takes(
    "input weight bias ones offset mask columns grad_input grad_weight grad_bias grad_offset grad_mask "
    f"grad_output {V2}"
)
def modulated_deform_conv_backward(input, weight, offset, mask, grad_output, with_bias, **options) -> None:
    tensors, geometry = _modulated(input, weight, offset, mask, grad_output, options)
    names = ["input", "weight", "offset", "mask"] + ["bias"] * with_bias
    targets = {name: options[f"grad_{name}"] for name in names}
    _add_gradients(grad_output, tensors, geometry, **targets)


# Convolution at selected pixels (guided anchoring): im2col, matrix product and scatter


def masked_im2col_forward(
    im: Tensor,  # [1, C, H, W]
    mask_h_idx: Tensor,  # [n], the output's pixels to compute
    mask_w_idx: Tensor,  # [n]
    col: Tensor,  # [C·kernel_h·kernel_w, n], written: the pixels under the kernel
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    # one kernel more at the end: without padding, the kernel leaves the map at the last pixels
    padded = torch.nn.functional.pad(im[0], (pad_w, pad_w + kernel_w, pad_h, pad_h + kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor,  # [C, n]
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,  # [1, C, height, width], written at the pixels of the mask
    **sizes: int,  # the sizes of im
) -> None:
    im[0, :, mask_h_idx, mask_w_idx] = col


# Multi-scale deformable attention; any batch size works with any im2col_step


@without_autocast
def ms_deform_attn_forward(
    value, spatial_shapes, level_start_index, sampling_locations, attention_weights, im2col_step
) -> Tensor:
    tensors = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    return dcnzoo.ops.ms_deform_attn(*tensors)


@without_autocast
def ms_deform_attn_backward(*tensors: Tensor, im2col_step: int) -> None:
    """Add the gradients of value, locations and weights to the last three of ``tensors``."""
    *inputs, grad_output = tensors[:6]
    gradients = torch.ops.dcnzoo._ms_deform_attn_backward(grad_output, *inputs, [True] * 3)
    for target, gradient in zip(tensors[6:], gradients, strict=True):
        target.add_(gradient)


# Boxes


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    order = scores.sort(descending=True).indices  # mmcv orders equal scores like this
    threshold = min(iou_threshold, 1.0)  # above 1, mmcv keeps all boxes
    return order[dcnzoo.ops.nms(boxes[order], scores[order], threshold, offset)]


# Regions of interest. mmcv passes numbers by name, and dcnzoo's operators use most of these names. If there
# is no offset, mmcv passes an empty tensor.


@without_autocast
def roi_align_forward(
    input, rois, output, argmax_y, argmax_x, aligned_height, aligned_width, pool_mode, **sampling
) -> None:
    sampling["pool_mode"] = "avg" if pool_mode == 1 else "max"  # roi_align refuses "max"
    output.copy_(dcnzoo.ops.roi_align(input, rois, (aligned_height, aligned_width), **sampling))


@without_autocast
def roi_align_backward(
    grad_output, rois, argmax_y, argmax_x, grad_input, aligned_height, aligned_width, pool_mode, **sampling
) -> None:
    grad_input.add_(torch.ops.dcnzoo._roi_align_backward(grad_output, rois, grad_input.shape, **sampling))


@without_autocast
def deform_roi_pool_forward(input, rois, offset, output, pooled_height, pooled_width, **sampling) -> None:
    offset = offset if offset.numel() else None
    output.copy_(dcnzoo.ops.deform_roi_pool(input, rois, offset, (pooled_height, pooled_width), **sampling))


@without_autocast
def deform_roi_pool_backward(
    grad_output, input, rois, offset, grad_input, grad_offset, pooled_height, pooled_width, gamma, **sampling
) -> None:
    if offset.numel():
        tensors, options = (grad_output, input, rois, offset), dict(gamma=gamma, output_mask=[True, True])
        gradients = torch.ops.dcnzoo._deform_roi_pool_backward(*tensors, **sampling, **options)
        grad_input.add_(gradients[0])
        grad_offset.add_(gradients[1])
    else:
        backward = torch.ops.dcnzoo._roi_align_backward
        grad_input.add_(backward(grad_output, rois, grad_input.shape, **sampling, aligned=True))
