"""The autocast rule of deformable convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("dcnzoo", "IMPL")


def register_autocast(name: str) -> None:
    """Under autocast the operator computes in autocast's dtype; float32 offsets and masks stay so."""
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _register(name, device, key)


def _register(name: str, device: str, key: str) -> None:
    operator = getattr(torch.ops.dcnzoo, name).default
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def autocast(input, weight, offset, mask, bias, *arguments):
        dtype = torch.get_autocast_dtype(device)

        def cast(tensor: Tensor | None, keep_float32: bool = False) -> Tensor | None:
            if tensor is None or tensor.dtype == torch.float64 or not tensor.is_floating_point():
                return tensor
            # Offsets are coordinates: bfloat16 would round 100.3 to 100.5.
            if keep_float32 and tensor.dtype == torch.float32:
                return tensor
            return tensor.to(dtype)

        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(
                cast(input), cast(weight), cast(offset, True), cast(mask, True), cast(bias), *arguments
            )

    _library.impl(name, autocast, key)
