"""Batching rules of the deformable operators: ``torch.vmap`` runs many calls as one."""

from __future__ import annotations

import torch
from torch import Tensor


def register_vmap(name: str, inputs: str, outputs: str, groups: int | None = None) -> None:
    """Register the batching rule of the operator ``dcnzoo::name``.

    Args:
        inputs, outputs: kinds of its first arguments and of its results, one letter each. ``m``: a map,
            offset or mask, ``(N, …)``. ``w``: weight or bias, whose first axis is channels. ``s``: a tensor
            without a vmap axis.
        groups: position of the number of groups among the arguments, if the operator's weights mix channels.

    If only maps have a vmap axis, it becomes part of the batch. If weights have one, or a weight needs
    separate gradients, it becomes part of the channels, and the number of groups is multiplied by its size.
    The last argument of an operator with several results selects the results to compute.
    """
    operator = getattr(torch.ops.dcnzoo, name).default

    @torch.library.register_vmap(f"dcnzoo::{name}")
    def _(info, dims, *arguments):
        arguments, size = list(arguments), info.batch_size
        if any(kind == "s" and dim is not None for kind, dim in zip(inputs, dims, strict=False)):
            raise RuntimeError(
                f"{name}: spatial_shapes, level_start_index: expected tensors without a vmap axis"
            )
        wanted = [True] if len(outputs) == 1 else arguments[-1]
        apart = any(kind == "w" and dim is not None for kind, dim in zip(inputs, dims, strict=False))
        apart |= len(outputs) > 1 and any(w for kind, w in zip(outputs, wanted, strict=True) if kind == "w")
        axis = {"m": 1 if apart else 0, "w": 0}
        for i, kind in enumerate(inputs):
            if arguments[i] is not None and (apart or kind == "m"):
                arguments[i] = fold(arguments[i], dims[i], size, axis[kind])
        if apart and groups is not None:
            arguments[groups] *= size
        results = operator(*arguments)
        if len(outputs) == 1:
            return unfold(results, size, axis["m"]), 0
        return (
            tuple(
                unfold(result, size, axis[kind]) if w else result
                for result, kind, w in zip(results, outputs, wanted, strict=True)
            ),
            tuple(0 if w else None for w in wanted),
        )


def fold(tensor: Tensor, dim: int | None, size: int, axis: int) -> Tensor:
    """Merge the vmap axis ``dim`` into ``axis`` of the remaining axes, as its outer part.

    Without a vmap axis (``dim`` is None), the tensor is repeated.
    """
    tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.movedim(0, axis).flatten(axis, axis + 1)


def unfold(tensor: Tensor, size: int, axis: int) -> Tensor:
    """The inverse of :func:`fold`. The vmap axis becomes the first axis."""
    return tensor.unflatten(axis, (size, tensor.shape[axis] // size)).movedim(axis, 0)


def fold_rois(rois: Tensor, dim: int | None, size: int, images: int | None) -> Tensor:
    """Merge the vmap axis of RoIs ``(K, 5)`` into their first axis, as its outer part.

    Args:
        images: number of images of each call, if the maps' vmap axis became part of the batch. Image numbers
            are shifted accordingly, and an invalid number becomes -1. None: all calls read the same maps.
    """
    rois = rois.unsqueeze(0).expand(size, *rois.shape) if dim is None else rois.movedim(dim, 0)
    if images is not None:
        rois = rois.to(torch.promote_types(rois.dtype, torch.float32))  # half precision rounds large numbers
        number = rois[..., :1]
        first = torch.arange(size, device=rois.device, dtype=rois.dtype).view(-1, 1, 1) * images
        number = torch.where((number >= 0) & (number < images), number + first, number.new_full((), -1))
        rois = torch.cat([number, rois[..., 1:]], dim=-1)
    return rois.flatten(0, 1)


def fold_pooling(
    input: Tensor, rois: Tensor, dims: tuple[int | None, ...], size: int
) -> tuple[Tensor, Tensor, int]:
    """Merge the vmap axes of maps and RoIs, the first two entries of ``dims``.

    Returns:
        maps, RoIs, and the axis of the output that contains the vmap axis: 1 (channels) if all calls have the
        same RoIs, else 0.
    """
    if dims[1] is None:
        return fold(input, dims[0], size, 1), rois, 1
    images = None
    if dims[0] is not None:
        input = fold(input, dims[0], size, 0)
        images = input.shape[0] // size
    return input, fold_rois(rois, dims[1], size, images), 0


def fold_pooling_backward(
    grad_output: Tensor, rois: Tensor, input_size: list[int], dims: tuple[int | None, ...], size: int
) -> tuple[Tensor, Tensor, list[int], int]:
    """:func:`fold_pooling` for the backward operator, which takes the maps' size instead of the maps."""
    batch, channels, *rest = input_size
    if dims[1] is None:
        return fold(grad_output, dims[0], size, 1), rois, [batch, size * channels, *rest], 1
    rois = fold_rois(rois, dims[1], size, batch)
    return fold(grad_output, dims[0], size, 0), rois, [size * batch, channels, *rest], 0
