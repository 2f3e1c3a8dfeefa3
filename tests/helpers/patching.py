"""Tests without a patch."""

from collections.abc import Iterator
from contextlib import contextmanager

from dcnzoo.compat import patches


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Context as with ``DCNZOO_PATCHES=-name,…``: the patches are undone and switched off."""
    before = patches._switches
    undone = [patch for patch in patches.table() if patch.applied and patch.name in names]
    patches._switches = patches._parse(",".join(f"-{name}" for name in names))
    for patch in undone:
        patch.undo()
    try:
        yield
    finally:
        patches._switches = before
        for patch in undone:
            patch.apply()
