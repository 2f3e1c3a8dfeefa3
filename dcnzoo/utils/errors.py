"""Errors that are shown as one line."""

import codecs
import errno
import functools
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake of the user, or of the world; its text is all that is shown."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_is_full(error: OSError) -> bool:
    """Whether a file cannot be written for lack of room."""
    return error.errno in _FULL


@contextmanager
def user_errors():
    """Inside, every error counts as a mistake in the config or on the command line: one line.

    The type is part of the line, for the error may be a defect of the program, except of ValueError,
    RuntimeError and OSError, whose texts say what is wrong.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        text = one_line(error)
        if isinstance(error, ValueError | OSError) or type(error) is RuntimeError or not str(error):
            raise UserError(text) from error
        raise UserError(f"{type(error).__name__}: {text} (DCNZOO_TRACEBACK=1 shows where)") from error


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make a tool's ``main`` end a user's mistake with one line and exit status 1.

    Missing files and full disks count as such wherever they are noticed, everything else only inside
    :func:`user_errors`. ``DCNZOO_TRACEBACK=1`` shows the traceback all the same. A reader of the output that
    ends early, such as ``head``, ends the command without a message, with the shell's status for it, 141.
    """

    @functools.wraps(main)
    def run() -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors=_SUBSTITUTE)
        with quiet_broken_pipe():
            try:
                _run(main)
            finally:
                sys.stdout.flush()  # here, where a broken pipe is caught; Python's own flush comes too late

    return run


def _run(main: Callable[[], None]) -> None:
    try:
        main()
    except (UserError, FileNotFoundError) as error:
        if os.environ.get("DCNZOO_TRACEBACK") == "1":
            raise
        sys.exit(f"error: {one_line(error)}")
    except OSError as error:
        if not disk_is_full(error) or os.environ.get("DCNZOO_TRACEBACK") == "1":
            raise
        sys.exit(f"error: {printable(str(error.filename or 'a file'))} cannot be written: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"file not found: {printable(str(error.filename))}"
    # from another process, torch brings the whole traceback as the text
    if worker := re.match(r"Caught .* in DataLoader worker process.*\n\S*Error: (.*)", str(error), re.DOTALL):
        return one_line(Exception(worker[1]))
    # str() of a KeyError is the repr of its text
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return printable(" ".join(text.split())) or type(error).__name__


def printable(text: str) -> str:
    """``text`` with its control characters escaped, as ``\\x1b``.

    A name from a file must not move the cursor, recolour the terminal or reorder the line. Letters of
    every script stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def quiet_broken_pipe() -> Iterator[None]:
    """Inside, writing to a reader that is gone ends the program with status 141 and without a message."""
    try:
        yield
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BrokenPipeError):
            cause = cause.__cause__ or cause.__context__
        # click and rich exit with 1 by then, rich with the pipe closed already
        exits = isinstance(error, SystemExit) and error.code == 1
        if not ((exits and cause) or (_reader_is_gone() and (exits or cause))):
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())  # what is buffered is flushed at the end
        sys.exit(128 + 13)  # as if by SIGPIPE


def _reader_is_gone() -> bool:
    """Whether standard output or error is a pipe without a reader: other pipes and sockets can break too."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        try:
            poll.register(stream.fileno(), 0)
        except (OSError, ValueError):  # not a file, or closed
            continue
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


_SUBSTITUTE = "dcnzoo.substitute"
_SUBSTITUTES = str.maketrans(
    {"–": "-", "−": "-", "…": "...", "×": "x", "±": "+-", "≤": "<=", "≥": ">=", "→": "->"}
)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """For terminals that lack a character: a similar one of ASCII, else its escape, never an exception."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_SUBSTITUTES)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(_SUBSTITUTE, _substitute)
