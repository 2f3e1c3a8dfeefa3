"""Arguments and options that several commands share."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dcnzoo.utils.errors import JointError, UserError, one_line
from dcnzoo.utils.files import require_file, require_new
from dcnzoo.utils.folders import CHECKPOINTS
from dcnzoo.utils.formats import BACKENDS, EXPORTED
from dcnzoo.utils.text import nearest

option = click.option


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


class Command(click.Command):
    """A command that accepts MMDetection's syntax: ``--cfg-options a=1 b=2``, ``--eval bbox segm``,
    ``--shape 240``. In errors of the library, it replaces the names of arguments by options.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        last = ""  # the last option, if the next word may be another value of it
        for word in args:
            if word.startswith("-"):
                last = word.partition("=")[0]
            elif words[-1:] == [last]:
                pass  # its first value
            elif (last == "--cfg-options" and "=" in word) or (last == "--eval" and word.isidentifier()):
                words.append(last)  # click takes one value for each option
            else:
                last = ""
            words.append(word)
        if "--shape" in words:  # a single number is used for both sides
            height = words.index("--shape") + 1
            if not "".join(words[height + 1 : height + 2]).isdecimal():
                words[height:height] = words[height : height + 1]
        return super().parse_args(ctx, words)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with self._flags():  # for errors of callbacks
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with self._flags():
            return super().invoke(ctx)

    @contextmanager
    def _flags(self) -> Iterator[None]:
        """Context in which the texts of errors pass through :meth:`with_flags`."""
        try:
            yield
        except (UserError, ValueError) as error:
            texts = error.args if isinstance(error, UserError) else [one_line(error)]
            kind = JointError if isinstance(error, JointError) else UserError
            raise kind(*(self.with_flags(str(text)) for text in texts)) from error
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(self.with_flags(str(error))) from error

    def with_flags(self, text: str) -> str:
        """Write arguments as a command line does: ``work_dir`` as ``--work-dir``, ``data=X`` as ``--data X``.

        Names without an underscore are replaced where an error begins with them, and before an equals sign.
        """
        outside = r"(?<![\w./=-])"  # paths and names of settings
        for param in self.params:
            flag, off = param.opts[0], (param.secondary_opts or param.opts)[0]
            if isinstance(param, click.Argument):
                flag = off = (param.metavar or flag).strip("[].").upper()
            name = rf"(?:{param.name}|{flag.lower()})"
            text = re.sub(rf"^{name}(?=: )", flag, text)
            text = re.sub(rf"{outside}{name}=False\b", off, text)
            text = re.sub(rf"{outside}{name}=True\b", flag, text)
            text = re.sub(rf"{outside}{name}=[\['\"]*(\S*?)[\]'\"]*(?=[,;:.]?(\s|$))", rf"{flag} \1", text)
            if "_" in str(param.name):
                text = re.sub(rf"{outside}{param.name}(?![\w=/]|\.\w)", flag, text)
        return text


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        similar = nearest(args[0], self.list_commands(ctx))
        if similar and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"no such command {args[0]!r}; did you mean {similar!r}?", ctx)
        return super().resolve_command(ctx, args)


def combined(*decorators: Callable) -> Callable[[Callable], Callable]:
    """Combine decorators into one. ``--help`` lists their options in this order."""
    return lambda function: reduce(lambda inner, outer: outer(inner), reversed(decorators), function)


def existing(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback: require a file, before the imports of OpenMMLab, which take seconds."""
    if value and value not in CHECKPOINTS and not ctx.resilient_parsing:
        require_file(str(value), str(param.name))
    return value


def existing_model(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback: require a possible name or file of a model, before torch is imported."""
    # an exported file does not need the zoo
    if value and not ctx.resilient_parsing and not (value.endswith(EXPORTED) and os.path.exists(value)):
        from dcnzoo.zoo.index import require_model

        require_model(value)
    return value


def _settings(ctx: click.Context, param: click.Parameter, words: Sequence[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` words in mmengine's syntax."""
    settings = {}
    for word in words:
        key, _, value = word.partition("=")
        if not key or key == word:
            raise click.BadParameter(f"expected KEY=VALUE, got {word}", ctx, param)
        try:
            settings[key] = _parse(value)
        except (AssertionError, RecursionError) as error:  # of unbalanced brackets
            raise click.BadParameter(f"{key}: expected a value or a list, got {value}", ctx, param) from error
    return settings


def _parse(value: str) -> Any:
    """Parse a value in mmengine's syntax, but keep the spaces inside a text, which mmengine removes."""
    from mmengine.config import DictAction

    value = value.strip()
    if value.startswith(("[", "(")) or "," in value:
        value = re.sub(r"\s*([,()\[\]])\s*", r"\1", value)

    def with_spaces(parsed: Any) -> Any:
        if isinstance(parsed, list | tuple):
            return type(parsed)(map(with_spaces, parsed))
        return parsed.replace("\0", " ") if isinstance(parsed, str) else parsed

    return with_spaces(DictAction._parse_iterable(value.replace(" ", "\0")))


def refuse(reason: str, *names: str) -> None:
    """Raise UsageError if one of the parameters is on the command line, where it would have no effect."""
    context = click.get_current_context()
    for param in context.command.params:
        given = context.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
        if param.name in names and given:
            raise click.UsageError(f"{param.opts[0]}: not allowed with {reason}", context)


def output_file(path: Path, force: bool) -> Path:
    """:func:`dcnzoo.utils.files.require_new` for the running command."""
    return require_new(click.get_current_context().command_path.partition(" ")[2], path, force=force)


def shape(help: str) -> Callable:
    """``--shape HEIGHT WIDTH``: the command receives two integers, or None."""
    return option("--shape", nargs=2, type=POSITIVE, metavar="HEIGHT WIDTH", help=help)


def num_images(default: int | None, help: str) -> Callable:
    return option("--num-images", type=POSITIVE, default=default, help=help)


force = option("--force", is_flag=True, help="Replace files that exist.")
cfg_options = option(
    "--cfg-options", multiple=True, metavar="KEY=VALUE", callback=_settings,
    help='Override settings: model.backbone.dcn=True "model.backbone.strides=(1,2,2)".',
)  # fmt: skip
allow_partial = option("--allow-partial", is_flag=True, help="Load the parameters that fit the model.")
unsafe_load = option("--unsafe-load", is_flag=True, help="Load a checkpoint and run any code in it.")
device = option("--device", default="auto", metavar="DEVICE", help="cpu, cuda, cuda:1 or auto.")
backend = option("--backend", type=click.Choice([*BACKENDS.values()]), help="Runtime of an exported file.")

# MODEL and --checkpoint, for dcnzoo.zoo.source.resolve; test and export have the argument CHECKPOINT
model = click.argument("model", type=NAME, callback=existing_model)
checkpoint = option(
    "--checkpoint", type=NAME, callback=existing, metavar="FILE",
    help="Weights; best or last of a work directory (default: its best, or the zoo's).",
)  # fmt: skip
checkpoint_argument = click.argument(
    "checkpoint", type=NAME, required=False, callback=existing, metavar="[CHECKPOINT]"
)
channels_last = option(
    "--no-channels-last", "channels_last", is_flag=True, flag_value=False, default=True, show_default=False,
    help="On a CPU, do not compute in channels-last order.",
)  # fmt: skip
work_dir = option("--work-dir", type=NAME, metavar="FOLDER", help="Default: work_dirs/<config>.")

# dcnzoo.data.dataset.ReadOptions
reading = combined(
    option("--clip", is_flag=True, help="Own data: clip objects to their images."),
    option("--skip-invalid", is_flag=True, help="Own data: skip invalid objects and files."),
    option("--zero-based", is_flag=True, help="Own data, Pascal VOC: coordinates are counted from 0."),
)

# the rest of dcnzoo.openmmlab.options.RunOptions
runner = combined(
    device,
    option(
        "--launcher",
        type=click.Choice(["none", "pytorch", "slurm", "mpi"]),
        default=lambda: "pytorch" if "TORCHELASTIC_RUN_ID" in os.environ else "none",
        show_default="none, pytorch under torchrun",
        help="Launcher of a distributed run.",
    ),
    channels_last,
    allow_partial,
    option("--verbose", is_flag=True, help="Print MMEngine's whole log."),
    # an argument of torch.distributed.launch, which also sets LOCAL_RANK
    option("--local-rank", "--local_rank", type=int, expose_value=False, hidden=True),
)

# the arguments of dcnzoo.load
loading = combined(checkpoint, device, cfg_options, allow_partial, unsafe_load)
