"""Parametrize over a product, of which ``make test`` runs a part and ``make test-all`` everything."""

from collections.abc import Sequence
from itertools import product

import pytest


def in_turn(names: str, first: Sequence, *others: Sequence):
    """``make test`` runs each value of ``first`` with one of each other axis, which take turns.

    Values may be ``pytest.param`` with one or several values and an id.
    """
    axes = [[each if hasattr(each, "marks") else pytest.param(each, id=str(each)) for each in axis]
            for axis in (first, *others)]  # fmt: skip
    params = []
    for places in product(*(range(len(axis)) for axis in axes)):
        row = [axis[place] for axis, place in zip(axes, places, strict=True)]
        marks = [mark for each in row for mark in each.marks]
        turn, is_next = places[0], True
        for axis, place in zip(axes[1:], places[1:], strict=True):
            turn, value = divmod(turn, len(axis))
            is_next &= place == value
        if not is_next:
            marks.append(pytest.mark.slow)
        values = [value for each in row for value in each.values]
        params.append(pytest.param(*values, id="-".join(str(each.id) for each in row), marks=marks))
    return pytest.mark.parametrize(names, params)
