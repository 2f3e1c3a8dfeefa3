"""Every private symbol of torch that the operators and layers use.

torch may rename or remove them in any release. `tests/test_torch_private.py` tests each of them. If one is
missing, :data:`missing` names it, the compiled operators are not loaded, and their import raises an error.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        _absent.append(path)
        return None


_absent: list[str] = []

# autograd formulas
SingleLevelFunction = _find("torch.autograd.function._SingleLevelFunction")
enable_single_level_autograd_function = _find(
    "torch._functorch.autograd_function.enable_single_level_autograd_function"
)
transforms_active = _find("torch._C._are_functorch_transforms_active")  # within jvp, grad or vmap
any_requires_grad = _find("torch._C._any_requires_grad")
set_forward_grad_enabled = _find("torch.autograd.forward_ad._set_fwd_grad_enabled")
_find("torch.autograd.forward_ad._current_level")  # not stored: its value changes (see in_dual_level)

# the dispatcher
AutoDispatchBelowAutograd = _find("torch._C._AutoDispatchBelowAutograd")
after_autograd_keyset = _find("torch._C._after_autograd_keyset")
ExcludeDispatchKeyGuard = _find("torch._C._ExcludeDispatchKeyGuard")
DispatchKey = _find("torch._C.DispatchKey")
DispatchKeySet = _find("torch._C.DispatchKeySet")
all_operator_names = _find("torch._C._dispatch_get_all_op_names")
has_kernel = _find("torch._C._dispatch_has_kernel_for_dispatch_key")

# bases of the layers
if TYPE_CHECKING:
    from torch.nn.modules.conv import _ConvNd as ConvNd
    from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeNd
else:
    ConvNd = _find("torch.nn.modules.conv._ConvNd")
    ConvTransposeNd = _find("torch.nn.modules.conv._ConvTransposeNd")

missing: str | None = None
if _absent:
    missing = (
        f"torch {torch.__version__} has no {', '.join(_absent)}, which dcnzoo needs: install another release "
        "of torch (2.10 or later; requirements.txt names the tested one) or a newer dcnzoo"
    )


def in_dual_level() -> bool:
    """Whether forward-mode tangents can exist: in a ``dual_level()`` or in ``torch.func.jvp``."""
    return torch.autograd.forward_ad._current_level >= 0
