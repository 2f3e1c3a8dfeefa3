"""Parametrize over a product, of which ``make test`` runs a part and ``make test-all`` everything."""

from collections.abc import Sequence
from itertools import cycle, product

import pytest


def in_turn(names: str, *axes: Sequence):
    """``make test`` runs each value of the first axis with one row of the product of the others, in turn.

    Values may be ``pytest.param`` with one or several values and an id.
    """
    axes = [[value if hasattr(value, "marks") else pytest.param(value, id=str(value)) for value in axis]
            for axis in axes]  # fmt: skip
    first, *others = (range(len(axis)) for axis in axes)
    quick = {(index, *row) for index, row in zip(first, cycle(product(*others)), strict=False)}
    params = []
    for row in product(first, *others):
        parts = [axis[index] for axis, index in zip(axes, row, strict=True)]
        marks = [mark for part in parts for mark in part.marks]
        if row not in quick:
            marks.append(pytest.mark.slow)
        values = [value for part in parts for value in part.values]
        params.append(pytest.param(*values, id="-".join(str(part.id) for part in parts), marks=marks))
    return pytest.mark.parametrize(names, params)
