"""The progress bar of the command line."""

import math
from datetime import timedelta
from typing import Any

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


def time_left(elapsed: float, done: int, left: int) -> str:
    """Return the time for the steps that are left as ``0:01:30``; empty before the first step."""
    return str(timedelta(seconds=round(elapsed / done * left))) if done > 0 else ""


def make_progress(console: Console, *done: ProgressColumn, **kwargs: Any) -> Progress:
    """A progress bar with a description, the columns ``done``, the time left and a note.

    By default ``done`` is the count and the elapsed time.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *(done or (MofNCompleteColumn(), TimeElapsedColumn())),
        TimeRemainingColumn(),
        TextColumn("left {task.fields[note]}"),
        console=console,
        speed_estimate_period=math.inf,  # rich's default, half a minute, is too short for slow steps
        **kwargs,
    )
