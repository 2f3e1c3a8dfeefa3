"""Errors that the command line prints as one line."""

import errno
import linecache
import re
import sys
import traceback
from contextlib import contextmanager


class UserError(Exception):
    """Errors in the user's input or environment: a line for each. They are shown without a traceback."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def require_flags(**flags: object) -> None:
    """Raise UserError unless all values are True or False: the text "no" would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"{name}: expected True or False, got {value!r}")


HINT = " (DCNZOO_TRACEBACK=1 shows where)"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a write failed for lack of space."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextmanager
def user_errors():
    """Context that turns every exception but missing packages into a :class:`UserError` of one line."""
    try:
        yield
    except (UserError, FileNotFoundError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise UserError(describe(error)) from error


def describe(error: Exception) -> str:
    """An exception on one line, with its type, because it may be a bug.

    ValueError, RuntimeError and OSError are exceptions to this: their messages describe the problem. An
    assertion without a message is described by its source.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    text = one_line(error)
    if isinstance(error, AssertionError):
        if not str(error) and frames:
            text = linecache.getline(frames[-1][0].f_code.co_filename, frames[-1][1]).strip()
        text = f"expected {text.removeprefix('assert ')}"
    elif isinstance(error, ValueError | OSError) or type(error) is RuntimeError or not str(error):
        return text
    else:
        text = f"{type(error).__name__}: {text}"
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames]
    libraries = sys.stdlib_module_names | {"torch", "numpy"}
    if [package for package in packages if package not in libraries][-1:] == ["dcnzoo"]:
        return f"this is an error in dcnzoo: {text}; please report it with the output of DCNZOO_TRACEBACK=1"
    return text + HINT


def one_line(error: BaseException) -> str:
    """The message of an exception, on one line."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"file not found: {printable(str(error.filename))}"
    # for an error in another process, torch's message is the whole traceback
    pattern = r"Caught .* in DataLoader worker process.*\n[\w.]*(?:Error|error): (.*)"
    if worker := re.match(pattern, str(error), re.DOTALL):
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
