"""The rules that torch applies to a call before autograd: autocast, and the batching of ``torch.vmap``."""

import itertools

import torch
from torch import Tensor

from ._library import implementations
from ._torch_private import AUTOCAST, DispatchKey, DispatchKeySet, ExcludeDispatchKeyGuard, missing
from .operator import Operator


def register_autocast(operator: Operator, float32: tuple[str, ...]) -> None:
    """Register the autocast rule: the operator computes in autocast's dtype.

    Args:
        float32: names of offsets, masks and locations, which stay float32 if they are float32.
    """
    if AUTOCAST not in missing:
        for key in DispatchKey.__members__:
            if key.startswith("Autocast"):
                _register(operator, key, float32)


def _register(operator: Operator, key: str, float32: tuple[str, ...]) -> None:
    overload, names = operator.overload, operator.Call._fields
    keys = DispatchKeySet(getattr(DispatchKey, key))

    def autocast(*arguments):
        dtype = torch.get_autocast_dtype(arguments[0].device.type)

        def cast(name: str, argument: object) -> object:
            if not isinstance(argument, Tensor) or not argument.is_floating_point():
                return argument
            # Offsets are coordinates: bfloat16 would round 100.3 to 100.5.
            if argument.dtype == torch.float64 or (name in float32 and argument.dtype == torch.float32):
                return argument
            return argument.to(dtype)

        with ExcludeDispatchKeyGuard(keys):
            return overload(*itertools.starmap(cast, zip(names, arguments, strict=False)))

    implementations.impl(operator.name, autocast, key)


def register_vmap(operator: Operator) -> None:
    """Register the batching rule of an operator, which runs many calls as one.

    If only maps have a vmap axis, it becomes part of the batch. If weights have one, or a weight needs
    separate gradients, the axis becomes part of the channels, and its size multiplies the groups.
    ``output_mask`` of an operator with several results selects the results to compute.
    """
    inputs, outputs = operator.batched.split("->")

    @torch.library.register_vmap(f"dcnzoo::{operator.name}")
    def batched(info, dims, *arguments):
        call, size = operator.Call(*arguments), info.batch_size
        with_axis = {kind for kind, dim in zip(inputs, dims, strict=False) if dim is not None}
        if "s" in with_axis:
            raise RuntimeError(f"{operator.name}: spatial_shapes, level_start_index: expected no vmap axis")
        needed = call.output_mask if len(outputs) > 1 else [True]
        computed = {kind for kind, is_needed in zip(outputs, needed, strict=True) if is_needed}
        into_channels = "w" in with_axis or (len(outputs) > 1 and "w" in computed)
        axis = {"m": 1 if into_channels else 0, "w": 0}
        folded = {
            name: fold(getattr(call, name), dim, size, axis[kind])
            for name, kind, dim in zip(call._fields, inputs, dims, strict=False)
            if getattr(call, name) is not None and (into_channels or kind == "m")
        }
        if into_channels:
            folded["groups"] = call.groups * size
        results = operator.overload(*call._replace(**folded))
        if len(outputs) == 1:
            return unfold(results, size, axis["m"]), 0
        unfolded = (
            unfold(result, size, axis[kind]) if is_needed else result
            for result, kind, is_needed in zip(results, outputs, needed, strict=True)
        )
        return tuple(unfolded), tuple(0 if is_needed else None for is_needed in needed)


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
    """Undo :func:`fold`. The vmap axis becomes the first axis."""
    return tensor.unflatten(axis, (size, tensor.shape[axis] // max(size, 1))).movedim(axis, 0)
