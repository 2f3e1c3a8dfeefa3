"""The progress bar of the command line."""

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


def make_progress(console: Console, *done: ProgressColumn, **kwargs: Any) -> Progress:
    """A progress bar with a description, the columns ``done``, the time left and a note.

    By default ``done`` is the count and the elapsed time.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *(done or (MofNCompleteColumn(), TimeElapsedColumn())),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        **kwargs,
    )
