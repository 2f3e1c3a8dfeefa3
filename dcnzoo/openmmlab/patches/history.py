"""A shorter history of logged values.

MMEngine copies all earlier values when it appends one, and saves them in each checkpoint: up to a million of
each name, https://github.com/open-mmlab/mmengine/issues/1446
"""

from collections.abc import Callable

from mmengine.logging import HistoryBuffer

from dcnzoo.compat.patches import Changes

MOST = 20_000  # values; MMEngine: a million


def short_histories(changes: Changes) -> None:
    """Keep the last values of each name. Means over longer windows, such as ``global``, are those of them."""

    def construct(original: Callable, self: HistoryBuffer, *args: object, **kwargs: object) -> None:
        original(self, *args, **({"max_length": MOST} | kwargs if len(args) < 3 else kwargs))

    changes.wrap(HistoryBuffer, "__init__", construct)
