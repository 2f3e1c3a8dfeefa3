"""Errors that are shown as one line."""

import functools
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager


class UserError(Exception):
    """A mistake of the user, or of the world; its text is all that is shown."""


@contextmanager
def user_errors():
    """Inside, whatever goes wrong is taken to be a mistake in the config or on the command line."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        raise UserError(one_line(error)) from error


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make a tool's ``main`` end a user's mistake with one line and exit status 1.

    Missing files count as such wherever they are noticed, everything else only inside
    :func:`user_errors`. ``DCNZOO_TRACEBACK=1`` shows the traceback all the same.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except (UserError, FileNotFoundError) as error:
            if os.environ.get("DCNZOO_TRACEBACK") == "1":
                raise
            sys.exit(f"error: {one_line(error)}")
        except KeyboardInterrupt:
            sys.exit(130)

    return run


def one_line(error: Exception) -> str:
    """What an exception says, on one line."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"file not found: {error.filename}"
    # str() of a KeyError is the repr of its text
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
