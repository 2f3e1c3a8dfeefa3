"""torch's own alert, for kernels whose sums have no fixed order."""

from __future__ import annotations

import warnings

import torch


def alert_not_deterministic(name: str) -> None:
    """Raises (or warns) as torch's own operators do under ``torch.use_deterministic_algorithms``."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        f"{name} does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this "
        "operation, or you can use the 'warn_only=True' option, if that's acceptable for your "
        "application."
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
