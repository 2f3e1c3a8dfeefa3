"""FLOPs formulas by operator."""

from __future__ import annotations

from collections.abc import Callable

# FLOPs of a bilinear sample, per channel: four products and their sum. The four positions and weights are
# computed once for all channels of a group and are not counted.
PER_SAMPLE = 2 * 4

formulas: dict[str, Callable[..., int]] = {}


def count_flops(name: str) -> Callable:
    """Decorator for the FLOPs formula of ``dcnzoo::name``. The formula receives shapes and ``out_shape``."""

    def add(formula: Callable[..., int]) -> Callable[..., int]:
        formulas[name] = formula
        return formula

    return add
