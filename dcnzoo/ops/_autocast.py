"""The autocast rule of the deformable operators."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ._torch_private import AUTOCAST, DispatchKey, DispatchKeySet, ExcludeDispatchKeyGuard, missing

_library = torch.library.Library("dcnzoo", "IMPL")


def register_autocast(name: str, float32_arguments: Sequence[int] = (2, 3)) -> None:
    """Register the autocast rule: the operator computes in autocast's dtype.

    Args:
        float32_arguments: positions of offsets, masks and locations, which stay float32 if they are float32.
    """
    if AUTOCAST in missing:
        return
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _register(name, device, key, float32_arguments)


def _register(name: str, device: str, key: str, float32_arguments: Sequence[int]) -> None:
    operator = getattr(torch.ops.dcnzoo, name).default
    keys = DispatchKeySet(getattr(DispatchKey, key))

    def autocast(*arguments):
        dtype = torch.get_autocast_dtype(device)

        def cast(place: int, argument: object) -> object:
            if not isinstance(argument, Tensor) or not argument.is_floating_point():
                return argument
            # Offsets are coordinates: bfloat16 would round 100.3 to 100.5.
            if argument.dtype == torch.float64 or (
                place in float32_arguments and argument.dtype == torch.float32
            ):
                return argument
            return argument.to(dtype)

        with ExcludeDispatchKeyGuard(keys):
            return operator(*itertools.starmap(cast, enumerate(arguments)))

    _library.impl(name, autocast, key)
