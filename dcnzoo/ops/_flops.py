"""The table of FLOPs formulas, by operator."""

from __future__ import annotations

from collections.abc import Callable

# Of a bilinear sample: four products and their sum, for every channel. What finds the four places and
# weights is shared by the channels of a group, and not counted.
PER_SAMPLE = 2 * 4

formulas: dict[str, Callable[..., int]] = {}


def count_flops(name: str) -> Callable:
    """Decorator for the FLOPs formula of ``dcnzoo::name``, which receives shapes and ``out_shape``."""

    def add(formula: Callable[..., int]) -> Callable[..., int]:
        formulas[name] = formula
        return formula

    return add
