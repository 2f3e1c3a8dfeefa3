"""The private symbols of torch on which only a feature of the operators depends, by feature.

torch may rename or remove them in any release. Then only that feature is missing: :data:`missing` has the
reason, which ``dcnzoo doctor`` prints. tests/ops/test_torch_private.py removes the symbols of each feature.
Every operator needs ``OpOverload._schema`` and ``Tensor._is_view``, and attention in compiled programs needs
``torch._assert_async``: they are used where they are needed.
"""

import contextlib
import pkgutil
from typing import TYPE_CHECKING, Any

import torch

TRANSFORMS = "torch.func transforms and forward-mode derivatives"
FORWARD_MODE = "forward-mode derivatives"
AUTOCAST = "autocast"
MODES = "FLOPs of operators in plain PyTorch"
SUMS = "the fast form of operators in plain PyTorch"

missing: dict[str, str] = {}  # feature -> reason


def _find(feature: str, path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(pkgutil.resolve_name(module), name)
    except (ImportError, AttributeError):
        missing[feature] = (
            f"torch {torch.__version__} has no {path}; torch 2.13, which is tested, or a newer dcnzoo has it"
        )
        return None


SingleLevelFunction = _find(TRANSFORMS, "torch.autograd.function._SingleLevelFunction")
enable_single_level_autograd_function = _find(
    TRANSFORMS, "torch._functorch.autograd_function.enable_single_level_autograd_function"
)
_transforms_active = _find(TRANSFORMS, "torch._C._are_functorch_transforms_active")
any_requires_grad = _find(TRANSFORMS, "torch._C._any_requires_grad")
AutoDispatchBelowAutograd = _find(TRANSFORMS, "torch._C._AutoDispatchBelowAutograd")
after_autograd_keyset = _find(TRANSFORMS, "torch._C._after_autograd_keyset")

_set_forward_grad_enabled = _find(FORWARD_MODE, "torch.autograd.forward_ad._set_fwd_grad_enabled")
_find(FORWARD_MODE, "torch.autograd.forward_ad._current_level")  # not stored: its value changes

ExcludeDispatchKeyGuard = _find(AUTOCAST, "torch._C._ExcludeDispatchKeyGuard")
DispatchKey = _find(AUTOCAST, "torch._C.DispatchKey")
DispatchKeySet = _find(AUTOCAST, "torch._C.DispatchKeySet")

_ForceDispatchKeyGuard = _find(MODES, "torch._C._ForceDispatchKeyGuard")
_included = _find(MODES, "torch._C._dispatch_tls_local_include_set")
_excluded = _find(MODES, "torch._C._dispatch_tls_local_exclude_set")

_key_of_device = _find(SUMS, "torch._C._dispatch_key_for_device")
_has_kernel = _find(SUMS, "torch._C._dispatch_has_kernel_for_dispatch_key")

# The bases of torch's convolutions, which have private names.
if TYPE_CHECKING:
    from torch.nn.modules.conv import _ConvNd as ConvNd
    from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeNd
else:
    ConvNd = torch.nn.Conv2d.__base__
    ConvTransposeNd = torch.nn.ConvTranspose2d.__base__


def transforms_active() -> bool:
    """Return whether this runs within ``torch.func.jvp``, ``grad`` or ``vmap``."""
    return TRANSFORMS not in missing and _transforms_active()


def allow_transforms() -> contextlib.AbstractContextManager:
    """Return a context in which kernels can use ``torch.func``, whose keys dispatch modes exclude."""
    if missing.keys() & {MODES, AUTOCAST}:
        return contextlib.nullcontext()
    keys = DispatchKeySet(DispatchKey.FuncTorchGradWrapper)
    for name in ("FuncTorchDynamicLayerFrontMode", "FuncTorchDynamicLayerBackMode"):
        keys = keys.add(getattr(DispatchKey, name))
    return _ForceDispatchKeyGuard(_included(), _excluded() - keys)


def in_dual_level() -> bool:
    """Return whether forward-mode tangents can exist: in a ``dual_level()`` or in ``torch.func.jvp``."""
    return FORWARD_MODE not in missing and torch.autograd.forward_ad._current_level >= 0


def has_weighted_sums(device: str) -> bool:
    """Return whether torch has kernels of ``F.embedding_bag`` for a device, with gradients of the weights."""
    if SUMS in missing:
        return False
    names, key = ("_embedding_bag", "_embedding_bag_per_sample_weights_backward"), _key_of_device(device)
    return all(_has_kernel(f"aten::{name}", key) for name in names)


def set_forward_grad_enabled(mode: bool) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if FORWARD_MODE in missing else _set_forward_grad_enabled(mode)
