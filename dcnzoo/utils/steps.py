"""The steps of a long function, which a progress bar shows."""

from collections.abc import Callable
from contextvars import ContextVar

listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def begin_step(name: str) -> None:
    """Show the name of the step that begins, if a bar is shown: see :func:`dcnzoo.utils.progress.waiting`."""
    if show := listener.get():
        show(name)
