"""Errors that the command line prints as one line each, and the lines that commands print.

An exception has three texts, each longer than the one before: :func:`one_line`, its message; :func:`message`,
with its type unless the message alone describes the problem; :func:`describe`, with a hint at the traceback.
"""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Errors in the user's input or environment: a line for each. They are shown without a traceback."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class JointError(UserError):
    """An error of all processes of a distributed training. The terminal shows it once for each machine."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that the user names does not exist."""


_EXTRA_OF_PACKAGE = {
    **dict.fromkeys(("mmcv", "mmdet", "mmengine", "cv2", "matplotlib", "safetensors"), "mmdet"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "openvino": "openvino",
}
_IN_SEVERAL_EXTRAS = ("PIL", "msgspec", "numpy", "pycocotools", "requests", "rich", "yaml")


def install_command(error: Exception, extra: str = "mmdet") -> str:
    """Return the command that installs the optional package whose import failed.

    It is empty if no extra has the package, and if the error has a command of its own.

    Args:
        extra: the extras that the work needs, such as ``mmdet,onnx``. Another one is named only if these do
            not have the package.
    """
    package = (getattr(error, "name", None) or "").partition(".")[0]
    own = _EXTRA_OF_PACKAGE.get(package, "")
    if package not in _IN_SEVERAL_EXTRAS and own not in extra.split(","):
        extra = own
    if not extra or "pip install" in str(error):
        return ""
    return f'pip install "dcnzoo[{extra}]"'


@contextmanager
def install_hint() -> Iterator[None]:
    """Context, also a decorator, that adds :func:`install_command` to the error about a missing package."""
    try:
        yield
    except ModuleNotFoundError as error:
        if command := install_command(error):
            raise ModuleNotFoundError(f"{error}: {command}", name=error.name) from error
        raise


HINT = " (DCNZOO_TRACEBACK=1 shows where)"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a write failed for lack of space."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextmanager
def user_errors() -> Iterator[None]:
    """Context that turns all exceptions but missing files and packages into one-line :class:`UserError`."""
    try:
        yield
    except (UserError, FileNotFoundError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise UserError(describe(error)) from error


def one_line(error: BaseException) -> str:
    """Return the message of an exception, on one line; without a message, its type."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"file not found: {printable(str(error.filename))}"
    # for an error in another process, torch's message is the whole traceback
    pattern = r"Caught .* in DataLoader worker process.*\n[\w.]*(?:Error|error): (.*)"
    if worker := re.match(pattern, str(error), re.DOTALL):
        return one_line(Exception(worker[1]))
    # str() of a KeyError is the repr of its text
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return printable(" ".join(text.split())) or type(error).__name__


def message(error: Exception) -> str:
    """Return an exception on one line, with its type unless the message describes the problem."""
    text = one_line(error)
    if isinstance(error, ValueError | OSError | NotImplementedError) or type(error) is RuntimeError:
        return text
    return f"{type(error).__name__}: {text}" if str(error) else text


def describe(error: Exception) -> str:
    """Return :func:`message` of an exception, with :data:`HINT` if it has the type."""
    text = message(error)
    return text if text == one_line(error) else text + HINT


def printable(text: str) -> str:
    """Return ``text`` with its control characters escaped, as ``\\x1b``.

    A name from a file must not move the cursor, recolour the terminal or reorder the line. Letters of
    every script stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """Print a line to standard error; control characters are escaped."""
    print(printable(text), file=sys.stderr)


def show(*lines: str) -> None:
    """Print lines; characters that control the terminal, or that it cannot encode, are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for line in lines:
        print(printable(line).encode(encoding, "backslashreplace").decode(encoding), flush=True)
