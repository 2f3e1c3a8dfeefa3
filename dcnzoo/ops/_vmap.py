"""Batching rules of the deformable operators: ``torch.vmap`` runs many calls as one."""

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
        needed = [True] if len(outputs) == 1 else arguments[-1]
        apart = any(kind == "w" and dim is not None for kind, dim in zip(inputs, dims, strict=False))
        apart |= len(outputs) > 1 and any(w for kind, w in zip(outputs, needed, strict=True) if kind == "w")
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
                for result, kind, w in zip(results, outputs, needed, strict=True)
            ),
            tuple(0 if w else None for w in needed),
        )


def fold(tensor: Tensor, dim: int | None, size: int, axis: int) -> Tensor:
    """Merge the vmap axis ``dim`` into ``axis`` of the remaining axes, as its outer part.

    Without a vmap axis (``dim`` is None), the tensor is repeated.
    """
    tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    tensor = tensor.movedim(0, axis)
    rows = tensor.shape[axis + 1]
    if isinstance(rows, int) and rows == 1:
        # not flatten: for a reshape to a dynamic size in an exported file, OpenVINO converts the map's layout
        return tensor.squeeze(axis + 1)
    return tensor.flatten(axis, axis + 1)


def unfold(tensor: Tensor, size: int, axis: int) -> Tensor:
    """The inverse of :func:`fold`. The vmap axis becomes the first axis."""
    return tensor.unflatten(axis, (size, tensor.shape[axis] // size)).movedim(axis, 0)
