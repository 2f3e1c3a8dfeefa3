"""Progress of long steps: a bar on a terminal, a line that is updated in a notebook, else some lines."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

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
from rich.table import Column

Item = TypeVar("Item")
SILENCE = 30  # seconds without output, after which a line is printed


def is_terminal(console: Console) -> bool:
    """Whether a console is a terminal of the first process. Unlike rich, it ignores FORCE_COLOR."""
    isatty = getattr(console.file, "isatty", None)
    return isatty is not None and isatty() and os.environ.get("LOCAL_RANK", "0") == "0"


class LineProgress(Progress):
    """Progress without a terminal: prints the columns other than the bar after 30 s of silence.

    In a notebook, it updates one line every second instead.
    """

    def __init__(self, *columns: ProgressColumn, **kwargs: Any) -> None:
        super().__init__(*columns, **{**kwargs, "disable": True})
        self._ended = threading.Event()
        self._update: Callable[[str], None] | None = None
        self.note_output()

    def note_output(self) -> None:
        """Start another period of silence, because something else was printed."""
        self._spoke = time.monotonic()

    def start(self) -> None:
        self._update = _line_of_notebook()
        threading.Thread(target=self._run, name="progress", daemon=True).start()

    def stop(self) -> None:
        if self._update and not self._ended.is_set():
            self._update(self._text())
        self._ended.set()  # without waiting for the thread: the garbage collector may call this in any thread

    def _run(self) -> None:
        while not self._ended.wait(min(1, SILENCE)):
            if self._update:
                self._update(self._text())
            elif self.tasks and time.monotonic() - self._spoke >= SILENCE:
                print(self._text(), file=self.console.file, flush=True)
                self.note_output()

    def _text(self) -> str:
        columns = [column for column in self.columns if isinstance(column, ProgressColumn)]
        shown = [column for column in columns if not isinstance(column, BarColumn)]
        return "  ".join(str(column(task)) for task in self.tasks[-1:] for column in shown).rstrip()


def _line_of_notebook() -> Callable[[str], None] | None:
    """Return a function that replaces the text of a new line in a notebook; elsewhere, None."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    line = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda text: line.update({"text/plain": text}, raw=True)


def track(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and show the progress. The total number defaults to the length of the items."""
    with make_progress(Console(stderr=True), transient=True) as progress:
        total = len(items) if total is None and isinstance(items, Sized) else total
        bar, shown, number = progress.add_task(title, total=total, note=""), 0.0, 0
        for number, item in enumerate(items, 1):  # rich's track updates only a bar that is shown
            yield item
            if time.monotonic() - shown > 0.05:  # an update takes as long as a short step
                progress.update(bar, completed=number)
                shown = time.monotonic()
        progress.update(bar, completed=number)


# how the active :func:`waiting` of a thread shows a step: the functions below it need not pass a bar on
_rename: ContextVar[Callable[[str], None]] = ContextVar("rename", default=lambda step: None)


@contextlib.contextmanager
def waiting(title: str) -> Iterator[None]:
    """Context that shows the time of a call of unknown length."""
    console = Console(stderr=True)
    kind = Progress if is_terminal(console) else LineProgress
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with kind(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(title, total=None)
        token = _rename.set(lambda step: progress.update(task, description=f"{title}: {step}"))
        try:
            yield
        finally:
            _rename.reset(token)


def name_step(step: str) -> None:
    """Tell :func:`waiting`, if it is active, which step of the work runs now."""
    _rename.get()(step)


def make_progress(console: Console, *done: ProgressColumn, **kwargs: Any) -> Progress:
    """Return a progress bar with a description, the columns ``done``, the time left and a note.

    By default ``done`` is the count and the elapsed time. Text on standard output is printed above the bar
    if it goes to a terminal, too.
    """
    kind = Progress if is_terminal(console) else LineProgress
    name = Column(max_width=30, no_wrap=True, overflow="ellipsis")  # the others fit into 80 characters
    return kind(
        TextColumn("{task.description}", markup=False, table_column=name),  # a folder's name may have [ ]
        BarColumn(bar_width=None),
        *(done or (MofNCompleteColumn(), TimeElapsedColumn())),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[note]}"),
        console=console,
        speed_estimate_period=3600,  # a step of a training may take minutes
        redirect_stdout=sys.stdout.isatty(),
        **kwargs,
    )
