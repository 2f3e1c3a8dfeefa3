"""Where an operator's module says how many operations its operator takes."""

from __future__ import annotations

from collections.abc import Callable

# Of a bilinear sample: four products and their sum, for every channel. What finds the four places and
# weights is shared by the channels of a group, and not counted.
PER_SAMPLE = 2 * 4

formulas: dict[str, Callable[..., int]] = {}


def count_flops(name: str) -> Callable:
    """Decorates the formula of ``dcnzoo::name``: shapes in the place of tensors, and ``out_shape``."""

    def add(formula: Callable[..., int]) -> Callable[..., int]:
        formulas[name] = formula
        return formula

    return add
