"""The progress bar of the command line."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import rich.progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


def track(items: Sequence[Item], title: str) -> Iterable[Item]:
    """Yield the items; show a progress bar if standard error is a terminal."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return rich.progress.track(items, title, console=console, disable=hidden, transient=True)


def make_progress(console: Console, *done: ProgressColumn, **kwargs: Any) -> Progress:
    """A progress bar with a description, the columns ``done``, the time left and a note.

    By default ``done`` is the count and the elapsed time.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *(done or (MofNCompleteColumn(), TimeElapsedColumn())),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[note]}"),
        console=console,
        speed_estimate_period=3600,  # a step of a training may take minutes
        **kwargs,
    )
