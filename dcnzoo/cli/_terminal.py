"""Terminal behaviour of all commands: one-line errors, terminals without Unicode."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from dcnzoo.utils.errors import JointError, UserError, describe, install_command, one_line

_EXTRAS = {"bench": "onnx", "data": "data", "export": "mmdet,onnx"}  # the extras of commands; others: mmdet


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Context in which errors end the program with one line each and exit status 1.

    ``DCNZOO_TRACEBACK=1`` shows the traceback instead. Also usable as a decorator: ``@one_line_errors()``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise  # click handles them
    except Exception as error:
        if os.environ.get("DCNZOO_TRACEBACK") == "1":
            raise
        sys.exit("\n".join(f"error: {one_line(Exception(line))}" for line in _lines(error)) or 1)
    except KeyboardInterrupt as error:
        print(f"interrupted{f'; {error}' if str(error) else ''}", file=sys.stderr)
        sys.exit(130)  # click would exit with 1


def _lines(error: Exception) -> Sequence[object]:
    if isinstance(error, JointError) and os.environ.get("LOCAL_RANK", "0") != "0":
        return []
    if isinstance(error, UserError):
        return error.args
    if isinstance(error, FileNotFoundError | ModuleNotFoundError):
        name = getattr(click.get_current_context(silent=True), "invoked_subcommand", None)
        command = install_command(error, _EXTRAS.get(str(name), "mmdet"))
        return [one_line(error) + (f": {command}" if command else "")]
    return [describe(error)]
