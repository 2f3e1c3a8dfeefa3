"""The rules that torch applies to a call before autograd: autocast, and the batching of ``torch.vmap``."""

import itertools

import torch
from torch import Tensor

from ._library import implementations
from ._torch_private import AUTOCAST, DispatchKey, DispatchKeySet, ExcludeDispatchKeyGuard, missing
from .operator import KEYS, Operator


def register_autocast(operator: Operator, float32: tuple[str, ...]) -> None:
    """Register the autocast rule: the operator computes in autocast's dtype.

    Args:
        float32: names of offsets, masks and locations, which stay float32 if they are float32.
    """
    if AUTOCAST not in missing:
        for device, key in KEYS.items():
            _register(operator, device, f"Autocast{key}", float32)


def _register(record: Operator, device: str, key: str, float32: tuple[str, ...]) -> None:
    operator, names = record.overload, record.call._fields
    keys = DispatchKeySet(getattr(DispatchKey, key))

    def autocast(*arguments):
        dtype = torch.get_autocast_dtype(device)

        def cast(name: str, argument: object) -> object:
            if not isinstance(argument, Tensor) or not argument.is_floating_point():
                return argument
            # Offsets are coordinates: bfloat16 would round 100.3 to 100.5.
            if argument.dtype == torch.float64 or (name in float32 and argument.dtype == torch.float32):
                return argument
            return argument.to(dtype)

        with ExcludeDispatchKeyGuard(keys):
            return operator(*itertools.starmap(cast, zip(names, arguments, strict=False)))

    implementations.impl(record.name, autocast, key)


def register_vmap(record: Operator) -> None:
    """Register the batching rule of an operator: it runs many calls as one.

    If only maps have a vmap axis, it becomes part of the batch. If weights have one, or a weight needs
    separate gradients, it becomes part of the channels, and the number of groups is multiplied by its size.
    ``output_mask`` of an operator with several results selects the results to compute.
    """
    name, operator, names = record.name, record.overload, record.call._fields
    inputs, outputs = record.batched.split("->")

    @torch.library.register_vmap(f"dcnzoo::{name}")
    def _(info, dims, *arguments):
        arguments, size = list(arguments), info.batch_size
        if any(kind == "s" and dim is not None for kind, dim in zip(inputs, dims, strict=False)):
            raise RuntimeError(
                f"{name}: spatial_shapes, level_start_index: expected tensors without a vmap axis"
            )
        needed = [True] if len(outputs) == 1 else arguments[names.index("output_mask")]
        apart = any(kind == "w" and dim is not None for kind, dim in zip(inputs, dims, strict=False))
        apart |= len(outputs) > 1 and any(w for kind, w in zip(outputs, needed, strict=True) if kind == "w")
        axis = {"m": 1 if apart else 0, "w": 0}
        for i, kind in enumerate(inputs):
            if arguments[i] is not None and (apart or kind == "m"):
                arguments[i] = fold(arguments[i], dims[i], size, axis[kind])
        if apart:
            arguments[names.index("groups")] *= size
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
    return tensor.unflatten(axis, (size, tensor.shape[axis] // max(size, 1))).movedim(axis, 0)
