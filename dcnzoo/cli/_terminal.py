"""Terminal behaviour of all commands: one-line errors, terminals without Unicode, closed pipes, tables."""

import logging
import os
import re
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import click

from dcnzoo.utils.errors import JointError, UserError, describe, disk_is_full, install_command, one_line
from dcnzoo.utils.findings import Finding, shown
from dcnzoo.utils.text import columns


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Context in which errors end the program with one line each and exit status 1.

    ``DCNZOO_TRACEBACK=1`` shows the traceback too. If the reader of the output stops early, as ``head`` does,
    the program ends without a message and with the shell's status for that, 141. Also usable as a decorator:
    ``@one_line_errors()``.
    """
    if sys.stdout is None or sys.stderr is None:  # by >&-; the next file that is opened would be the output
        sys.exit("error: standard output and error: expected open ones; > /dev/null discards them")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    raises = logging.raiseExceptions
    logging.raiseExceptions = False  # a log on a full disk: the next checkpoint ends the training
    with _quiet_broken_pipe():
        try:
            yield
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click and _quiet_broken_pipe handle them
        except Exception as error:
            if os.environ.get("DCNZOO_TRACEBACK") == "1":
                raise
            sys.exit("\n".join(f"error: {one_line(Exception(line))}" for line in _lines(error)) or 1)
        except KeyboardInterrupt as error:
            print(f"interrupted{f'; {error}' if str(error) else ''}", file=sys.stderr)
            sys.exit(130)  # click would exit with 1
        finally:
            logging.raiseExceptions = raises
            sys.stdout.flush()  # Python's own flush at exit is too late to catch a broken pipe


def _lines(error: Exception) -> Sequence[object]:
    if isinstance(error, JointError) and os.environ.get("LOCAL_RANK", "0") != "0":
        return []
    if isinstance(error, UserError):
        return error.args
    if isinstance(error, FileNotFoundError | ModuleNotFoundError):
        name = getattr(click.get_current_context(silent=True), "invoked_subcommand", None)
        extra = {"bench": "onnx", "data": "data", "export": "mmdet,onnx"}.get(str(name), "mmdet")
        command = install_command(error, extra)
        return [one_line(error) + (f": {command}" if command else "")]
    if isinstance(error, OSError) and disk_is_full(error):
        return [f"{error.filename or 'standard output or a file'} cannot be written: {error.strerror}"]
    return [describe(error)]


@contextmanager
def _quiet_broken_pipe() -> Iterator[None]:
    """Context in which writing to a closed pipe ends the program with status 141 and without a message."""
    try:
        yield
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BrokenPipeError):
            cause = cause.__cause__ or cause.__context__
        # click and rich have turned it into exit status 1; rich has already closed the pipe
        exits = isinstance(error, SystemExit) and error.code == 1
        if not ((exits and cause) or (_reader_is_gone() and (exits or cause))):
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())  # the buffers are flushed at exit
        sys.exit(128 + 13)  # as if by SIGPIPE


def _reader_is_gone() -> bool:
    """Whether standard output or error is a pipe without a reader; other pipes and sockets do not count."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        try:
            poll.register(stream.fileno(), 0)
        except (OSError, ValueError):  # not a file, or closed
            continue
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def with_flags(text: str) -> str:
    """Show arguments as options of the running command: ``resume=True`` as ``--resume``."""
    context = click.get_current_context(silent=True)
    options = [each for each in context.command.params if isinstance(each, click.Option)] if context else []
    flags = {str(each.name): each.opts[0] for each in options}

    def flag(match: re.Match) -> str:
        name, _, value = match.groups()
        if name not in flags:
            return match[0]
        is_switch = value in ("True", "…") or flags[name].startswith("--no-")
        return flags[name] if is_switch else f"{flags[name]} {value}"

    name, colon, rest = re.sub(r"(?<![\w./\\-])(\w+)=('?)(?!None\b)(\w+|…)\2", flag, text).partition(": ")
    return flags.get(name, name) + colon + rest


def print_findings(findings: Sequence[Finding], prefix: str = "", file: TextIO | None = None) -> None:
    """Print a line for each of the first findings. ``prefix`` is a file that is the same for all."""
    for line in shown(findings, prefix):
        print(with_flags(line), file=file)


def print_columns(rows: Sequence[Sequence[str]], numbers: bool = False) -> None:
    """Print aligned columns; ``numbers``: align all but the first at the right."""
    for line in columns(rows, numbers):
        print(line)
