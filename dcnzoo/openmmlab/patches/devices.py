"""Which kernels run an operator of mmcv: dcnzoo's or mmcv's own, by device."""

import torch

from dcnzoo.compat import mmcv, patches
from dcnzoo.ops import _library

DEFAULT_DEVICES = ("cpu",)  # where dcnzoo's kernels replace mmcv's by default; on GPUs they were not compared


def _compiled_devices() -> tuple[str, ...] | None:
    compiled = mmcv.compiled_extension()
    if compiled is None:
        return None
    return ("cpu",) if compiled.get_compiling_cuda_version() == "not available" else ("cpu", "cuda")


# The devices for which a compiled mmcv has kernels; None: mmcv-lite
compiled_devices = _compiled_devices()


def runs_on_dcnzoo(operator: str, device: torch.device) -> bool:
    """Return whether an operator of mmcv runs on dcnzoo's kernels on this device.

    With mmcv-lite it always does. A compiled mmcv keeps its own kernels

    - if the operator's patch is off, on every device;
    - on the CPU, if it has kernels there and dcnzoo's compiled library is missing;
    - on CUDA, if it has kernels there and the patch ``cuda`` is off; on other devices, always.

    Args:
        operator: its name in :data:`dcnzoo.openmmlab.patches.kernels.OPERATORS`.
    """
    if compiled_devices is None:
        return True
    if not patches.enabled(operator):
        return False
    if device.type in DEFAULT_DEVICES:
        return device.type in _library.loaded or device.type not in compiled_devices
    return device.type == "cuda" and ("cuda" not in compiled_devices or patches.enabled(patches.CUDA))


def attends_on_dcnzoo(device: torch.device) -> bool:
    """Return whether attention on this device runs dcnzoo's operator, not mmcv's function in PyTorch."""
    return device.type in _library.loaded and runs_on_dcnzoo("multi_scale_deform_attn", device)


def largest_step(batch: int, most: int | None) -> int:
    """The largest ``im2col_step`` up to ``most`` that divides the batch, as mmcv's own kernels require."""
    most = min(batch, most or 32)
    return next((step for step in range(most, 0, -1) if batch % step == 0), 1)
