"""The progress bar of the command line."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import rich.progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

Item = TypeVar("Item")


def track(items: Sequence[Item], title: str) -> Iterable[Item]:
    """Yield the items; show a progress bar if standard error is a terminal."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return rich.progress.track(items, title, console=console, disable=hidden, transient=True)


class TimeLeft(ProgressColumn):
    """The time left, from the first step on; rich's own column needs several steps in half a minute.

    The field ``first`` of a task is the number of steps of an earlier process.
    """

    def render(self, task: Task) -> Text:
        done = int(task.completed) - task.fields.get("first", 0)
        seconds = round((task.elapsed or 0) / done * (task.remaining or 0)) if done > 0 else None
        left = "-:--:--" if seconds is None else str(timedelta(seconds=seconds))
        return Text(f"{left} left", "progress.remaining")


def make_progress(console: Console, *done: ProgressColumn, **kwargs: Any) -> Progress:
    """A progress bar with a description, the columns ``done``, the time left and a note.

    By default ``done`` is the count and the elapsed time.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        *(done or (MofNCompleteColumn(), TimeElapsedColumn())),
        TimeLeft(),
        TextColumn("{task.fields[note]}"),
        console=console,
        **kwargs,
    )
