"""Errors that the command line prints as one line."""

import errno
import linecache
import re
import sys
import traceback
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
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript", "onnxslim"), "onnx"),
    "openvino": "openvino",
    "pyarrow": "parquet",
    "ray": "ray",
}
_IN_SEVERAL_EXTRAS = (
    *("PIL", "msgspec", "numpy", "pycocotools", "requests", "rich", "shapely", "urllib3", "yaml"),
)


def install_command(error: Exception, extra: str = "mmdet") -> str:
    """Return the command that installs a missing optional package; empty for other errors, or if it is there.

    Args:
        extra: of a package that several extras have.
    """
    package = (getattr(error, "name", None) or "").partition(".")[0]
    extra = extra if package in _IN_SEVERAL_EXTRAS else _EXTRA_OF_PACKAGE.get(package, "")
    return f'pip install "dcnzoo[{extra}]"' if extra and "pip install" not in str(error) else ""


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
def user_errors():
    """Context that turns every exception but missing packages into a :class:`UserError` of one line."""
    try:
        yield
    except (UserError, FileNotFoundError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise UserError(describe(error)) from error


def describe(error: Exception) -> str:
    """Return :func:`message` of an exception, with how to see or report where it was raised.

    ValueError, RuntimeError, NotImplementedError and OSError are exceptions to this: their messages describe
    the problem.
    """
    text = message(error)
    if _is_clear(error):
        return text
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    libraries = sys.stdlib_module_names | {"torch", "numpy"}
    if [package for package in packages if package not in libraries][-1:] == ["dcnzoo"]:
        return f"this is an error in dcnzoo: {text}; please report it with the output of DCNZOO_TRACEBACK=1"
    return text + HINT


def message(error: Exception) -> str:
    """An exception on one line, with its type unless its message describes the problem.

    An assertion without a message is described by its source and the texts and integers that it names.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    text = one_line(error)
    if isinstance(error, AssertionError):
        if not str(error) and frames:
            frame, line = frames[-1]
            text = linecache.getline(frame.f_code.co_filename, line).strip()
            values = {word: frame.f_locals.get(word) for word in re.findall(r"\w+", text)}
            got = [f"{name}={value!r}" for name, value in values.items() if isinstance(value, str | int)]
            text = f"{text}, got {', '.join(got)}" if got else text
        return f"expected {text.removeprefix('assert ')}"
    if _is_clear(error):
        return text
    return f"{type(error).__name__}: {text}"


def _is_clear(error: Exception) -> bool:
    """Whether the message of an exception describes the problem, or there is none."""
    kinds = (ValueError, OSError, NotImplementedError)
    has_text = isinstance(error, kinds) or type(error) is RuntimeError or not str(error)
    return has_text and not isinstance(error, AssertionError)


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
