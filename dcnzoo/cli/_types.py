"""Types of arguments and options."""

import os
from pathlib import Path
from typing import Any

import click


class UserPath(click.Path):
    """A path whose ``~`` is the home folder: in ``--out=~/x``, the shell does not expand it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):  # such as an unset shell variable; Path("") is the current folder
            self.fail("expected a path, got an empty text", param, ctx)
        return super().convert(os.path.expanduser(value), param, ctx)


class FileName(UserPath):
    """The name of an output file, which must end in one of ``endings``."""

    def __init__(self, *endings: str) -> None:
        super().__init__(path_type=Path)
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).endswith(self.endings):
            self.fail(f"expected a name that ends in {' or '.join(self.endings)}, got {value}", param, ctx)
        return super().convert(value, param, ctx)


NAME = UserPath()  # the name of a file or of something else; shells complete file names
FOLDER = UserPath(file_okay=False, path_type=Path)
DATA = UserPath(path_type=Path)  # a folder or file with annotated pictures
EXISTING_FOLDER = UserPath(exists=True, file_okay=False, path_type=Path)
POSITIVE = click.IntRange(min=1)


class Names(click.ParamType):
    """``a,b,c``, or a file with one name per line."""

    name = "NAMES"
    shell_complete = NAME.shell_complete

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if not isinstance(value, str):
            return value
        is_file = os.path.isfile(value)  # Path.is_file raises if 80 names are too long for a file name
        names = Path(value).read_text(encoding="utf-8-sig").splitlines() if is_file else value.split(",")
        if not (names := [name.strip() for name in names if name.strip()]):
            self.fail(f"expected names, got none in {value!r}", param, ctx)
        return names


class Numbers(click.ParamType):
    """``count`` numbers, separated by commas."""

    name = "numbers"

    def __init__(self, count: int) -> None:
        self.count = count

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != self.count:
            self.fail(f"expected {self.count} numbers separated by commas, got {value}", param, ctx)
        return numbers
