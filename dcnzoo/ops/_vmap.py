"""The batching rule of the deformable operators: how ``torch.vmap`` makes one call of many."""

from __future__ import annotations

import torch
from torch import Tensor


def register_vmap(name: str, inputs: str, outputs: str, groups: int | None = None) -> None:
    """Give the operator ``dcnzoo::name`` its rule.

    Args:
        inputs, outputs: what its first arguments and its results are, a letter each: ``m``, a map, offset
            or mask, ``(N, …)``; ``w``, weight or bias, whose first axis is channels; or ``s``, a tensor that
            is the same for all.
        groups: the place of the number of groups among the arguments, of an operator whose weights mix
            channels. The last argument of an operator with several results says which are wanted.

    Where only maps are vmapped, the axis becomes part of the batch. Where weights are, or the gradients of
    one are to be kept apart, it becomes part of the channels, and there are as many times the groups.
    """
    operator = getattr(torch.ops.dcnzoo, name).default

    @torch.library.register_vmap(f"dcnzoo::{name}")
    def _(info, dims, *arguments):
        arguments, size = list(arguments), info.batch_size
        if any(kind == "s" and dim is not None for kind, dim in zip(inputs, dims, strict=False)):
            raise RuntimeError(f"vmap over {name}: expected sizes of levels that are the same for all")
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
    """Puts the vmapped axis (``None``: the same for all) into ``axis`` of the rest, as its outer part."""
    tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.movedim(0, axis).flatten(axis, axis + 1)


def unfold(tensor: Tensor, size: int, axis: int) -> Tensor:
    """The inverse of :func:`fold`, with the vmapped axis in front."""
    return tensor.unflatten(axis, (size, tensor.shape[axis] // size)).movedim(axis, 0)


def fold_rois(rois: Tensor, dim: int | None, size: int, images: int | None) -> Tensor:
    """Puts the vmapped axis of RoIs ``(K, 5)`` into the first of the rest, as its outer part.

    Args:
        images: so many images are in each part of the maps, whose axis became part of the batch: the RoIs'
            image numbers are shifted. A number that is wrong becomes -1. None: all parts read the same maps.
    """
    rois = rois.unsqueeze(0).expand(size, *rois.shape) if dim is None else rois.movedim(dim, 0)
    if images is not None:
        rois = rois.to(torch.promote_types(rois.dtype, torch.float32))  # half precision does not count far
        number = rois[..., :1]
        first = torch.arange(size, device=rois.device, dtype=rois.dtype).view(-1, 1, 1) * images
        number = torch.where((number >= 0) & (number < images), number + first, number.new_full((), -1))
        rois = torch.cat([number, rois[..., 1:]], dim=-1)
    return rois.flatten(0, 1)


def fold_pooling(
    input: Tensor, rois: Tensor, dims: tuple[int | None, ...], size: int
) -> tuple[Tensor, Tensor, int]:
    """Fold the vmapped axis of maps and RoIs, whose axes come first in ``dims``.

    Returns:
        maps, RoIs, and the axis of the output that it became part of: the channels where all have the same
        RoIs.
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
    """The same for the backward, with the size of the maps in place of the maps."""
    batch, channels, *rest = input_size
    if dims[1] is None:
        return fold(grad_output, dims[0], size, 1), rois, [batch, size * channels, *rest], 1
    rois = fold_rois(rois, dims[1], size, batch)
    return fold(grad_output, dims[0], size, 0), rois, [size * batch, channels, *rest], 0
