"""Errors that the command line prints as one line."""

import errno
import re
from contextlib import contextmanager


class UserError(Exception):
    """Errors in the user's input or environment: a line for each. They are shown without a traceback."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_is_full(error: OSError) -> bool:
    """Whether a write failed for lack of space."""
    return error.errno in _FULL


@contextmanager
def user_errors():
    """Context that turns every exception into a :class:`UserError` of one line.

    The line includes the exception's type, because the error may be a bug. ValueError, RuntimeError and
    OSError are exceptions to this: their messages describe the problem. So are missing packages.
    """
    try:
        yield
    except (UserError, FileNotFoundError, ModuleNotFoundError):
        raise
    except Exception as error:
        text = one_line(error)
        if isinstance(error, ValueError | OSError) or type(error) is RuntimeError or not str(error):
            raise UserError(text) from error
        raise UserError(f"{type(error).__name__}: {text} (DCNZOO_TRACEBACK=1 shows where)") from error


def one_line(error: BaseException) -> str:
    """The message of an exception, on one line."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"file not found: {printable(str(error.filename))}"
    # for an error in another process, torch's message is the whole traceback
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
