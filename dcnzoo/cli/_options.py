"""Arguments and options that several commands share."""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from dcnzoo.cli._terminal import with_flags
from dcnzoo.utils.errors import JointError, UserError, one_line
from dcnzoo.utils.files import require_file, require_new
from dcnzoo.utils.folders import CHECKPOINTS, mim_folder
from dcnzoo.utils.formats import BACKENDS, EXPORTED, KINDS
from dcnzoo.utils.text import nearest


class UserPath(click.Path):
    """A path whose ``~`` is the home folder: in ``--out=~/x``, the shell leaves it to the program."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = os.path.expanduser(value)
        kind = KINDS.get(Path(path).suffix.lower())
        if kind and not self.file_okay and not os.path.isdir(path):
            self.fail(f"expected a folder, got the name of {kind}, {value}", param, ctx)
        return super().convert(path, param, ctx)


class ModelName(UserPath):
    """MODEL. The shell completes names of the zoo, work directories and files."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list:
        names = {*_zoo_names(), *glob.glob("work_dirs/*"), *glob.glob(f"{glob.escape(incomplete)}*")}
        items = [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
        return items or super().shell_complete(ctx, param, incomplete)


def _zoo_names() -> Iterator[str]:
    """Yield the names of the zoo without its index, whose imports take seconds."""
    for folder in filter(None, map(mim_folder, ("dcnzoo", "mmdet"))):
        for metafile in folder.glob("configs/*/metafile.yml"):
            text = metafile.read_text(encoding="utf-8")
            yield from re.findall(r"^[ -]*Config: (?:.*/)?([^/\n]+)\.py\s*$", text, re.MULTILINE)


NAME = UserPath()  # of a file, for which shells complete files, or of something else
MODEL = ModelName()
FILE = UserPath(dir_okay=False, path_type=Path)
FOLDER = UserPath(file_okay=False, path_type=Path)
EXISTING_FOLDER = UserPath(exists=True, file_okay=False, path_type=Path)
SETTINGS = "--cfg-options"
METRICS = ("bbox", "segm", "proposal", "proposal_fast")

option = click.option


class Command(click.Command):
    """A command that accepts MMDetection's syntax: ``--cfg-options a=1 b=2``, ``--eval bbox segm``,
    ``--shape 240``. In errors of the library, arguments become options: ``raw_outputs:`` is shown as
    ``--skip-postprocess:``, and ``resume=True`` in a hint as ``--resume``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        last = ""  # the last option, if it may have another value
        for word in args:
            if word.startswith("-"):
                last = word.partition("=")[0]
            elif words and words[-1] == last:
                pass
            elif (last == SETTINGS and "=" in word) or (last == "--eval" and word in METRICS):
                words.append(last)
            else:
                last = ""
            words.append(word)
        if "--shape" in words:  # one number for both sides
            height, *width = words[words.index("--shape") + 1 :][:2] or [""]
            if not "".join(width).isdecimal():
                words.insert(words.index("--shape") + 1, height)
        for before, word in pairwise(["", *words]):
            if word == "" or re.fullmatch("--[a-z-]+=", word):  # an unset variable of the shell
                name = word.rstrip("=") or (before if before.startswith("-") else "argument")
                raise click.UsageError(f"{name}: expected a value, got an empty text", ctx)
        rest = super().parse_args(ctx, words)
        for param in self.params:  # an option of another one
            other = re.match("With (--[a-z-]+)[ :]", getattr(param, "help", None) or "")
            names = {name: str(each.name) for each in self.params for name in each.opts}
            if other and _is_given(ctx, param) and not ctx.params[names[other[1]]]:
                raise click.UsageError(f"{param.opts[0]}: expected {other[1]}, too", ctx)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (UserError, ValueError) as error:
            texts = error.args if isinstance(error, UserError) else [one_line(error)]
            kind = JointError if isinstance(error, JointError) else UserError
            raise kind(*(with_flags(str(text)) for text in texts)) from error
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(with_flags(str(error))) from None


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
        require_file(str(value), param.name)
    return value


def existing_checkpoint(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback: require a file with weights, before a model is built, or an exported one."""
    existing(ctx, param, value)
    kind = KINDS.get(Path(value or "").suffix.lower())
    if kind and not str(value).endswith(EXPORTED) and not ctx.resilient_parsing:
        raise UserError(f"checkpoint: expected a file with weights, got {kind}, {value}")
    return value


def existing_model(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback: require what may be a model, before torch is imported."""
    # a runtime needs nothing of the zoo
    if value and not ctx.resilient_parsing and not (value.endswith(EXPORTED) and os.path.exists(value)):
        from dcnzoo.zoo.index import require_model

        require_model(value)
    return value


def spelt_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Callback: require a name that torch may know, before its import, after which it is required."""
    if not re.fullmatch(r"auto|cpu(:0)?|(cuda|hpu|mps|npu|xla|xpu)(:\d+)?", value):
        raise UserError(f"--device: expected auto, cpu, cuda or cuda:NUMBER, got {value}")
    return value


class FileName(UserPath):
    """The name of an output file, which must end in one of ``endings``."""

    def __init__(self, *endings: str) -> None:
        super().__init__(path_type=Path)
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).endswith(self.endings):
            self.fail(f"expected a name that ends in {' or '.join(self.endings)}, got {value}", param, ctx)
        return super().convert(value, param, ctx)


class Names(click.ParamType):
    """``a,b,c``, or a file with one name per line."""

    name = "NAMES"
    shell_complete = NAME.shell_complete

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        from dcnzoo.data.files import InvalidAnnotation, read_text

        try:  # os.path.isfile: Path.is_file raises if 80 names are too long for a file name
            names = read_text(Path(value)).splitlines() if os.path.isfile(value) else value.split(",")
        except InvalidAnnotation as error:
            raise UserError(f"--classes: {value}: {error}") from None
        if not (names := [name.strip() for name in names if name.strip()]):
            raise UserError(f"--classes: expected names, got none in {value!r}")
        return names


class Shard(click.ParamType):
    """``3/1000``: the third of a thousand parts."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple:
        number, _, total = value.partition("/")
        if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
            self.fail(f"expected K/N with 1 ≤ K ≤ N, got {value}", param, ctx)
        return int(number), int(total)


class IntRange(click.IntRange):
    name = "integer"  # click's errors say "not a valid integer range"


class FloatRange(click.FloatRange):
    name = "number"


POSITIVE = IntRange(min=1)


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


def _settings(ctx: click.Context, param: click.Parameter, words: Sequence[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE`` words in mmengine's syntax."""
    if not words or ctx.resilient_parsing:
        return {}

    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"expected KEY=VALUE, got {word}", ctx, param)
        if re.search(r"(^|[\[(,])\s*(dict\(|{\s*['\"])", value):
            expected = f"expected an option for each setting of a dictionary, such as {key}.name=1"
            raise click.BadParameter(f"{key}: {expected}, got {value}", ctx, param)
        if key in settings:
            raise click.BadParameter(f"{key}: expected one value, got two", ctx, param)
        try:
            settings[key] = _parse(value)
        except AssertionError as error:
            raise click.BadParameter(f"{key}: {error}", ctx, param) from error
        except RecursionError as error:  # mmengine, of commas in brackets after a name
            expected = f"expected a value or a list, got {value}"
            raise click.BadParameter(f"{key}: {expected}", ctx, param) from error
    return settings


def _parse(value: str) -> Any:
    """Parse a value in mmengine's syntax. mmengine removes spaces; those inside a text remain here."""
    from mmengine.config import DictAction

    value = value.strip()
    if value.startswith(("[", "(")) or "," in value:
        value = re.sub(r"\s*([,()\[\]])\s*", r"\1", value)

    def with_spaces(parsed: Any) -> Any:
        if isinstance(parsed, list | tuple):
            return type(parsed)(map(with_spaces, parsed))
        return parsed.replace("\0", " ") if isinstance(parsed, str) else parsed

    return with_spaces(DictAction._parse_iterable(value.replace(" ", "\0")))


def _is_given(context: click.Context, param: click.Parameter) -> bool:
    return context.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE


def refuse(reason: str, *names: str) -> None:
    """Raise UsageError for the first of the parameters that is on the command line: it has no effect."""
    context = click.get_current_context()
    for param in context.command.params:
        if param.name in names and _is_given(context, param):
            label = param.opts[0] if isinstance(param, click.Option) else param.make_metavar(context)
            raise click.UsageError(f"{label.strip('[]')}: not allowed with {reason}", context)


def shape(help: str) -> Callable:
    """``--shape HEIGHT WIDTH``: the command receives two integers, or None."""
    return option("--shape", nargs=2, type=POSITIVE, metavar="HEIGHT WIDTH", help=help)


def num_images(default: int | None, help: str) -> Callable:
    return option("--num-images", type=POSITIVE, default=default, help=help)


def output_file(path: Path, force: bool) -> Path:
    """:func:`dcnzoo.utils.files.require_new` for the running command."""
    command = click.get_current_context().command_path.partition(" ")[2]
    return require_new(command, path, force=force)


force = option("--force", is_flag=True, help="Replace files that exist.")
cfg_options = option(
    SETTINGS,
    multiple=True,
    metavar="KEY=VALUE",
    callback=_settings,
    help="Override settings of the config: model.backbone.dcn=True train_dataloader.batch_size=4 "
    '"model.backbone.strides=(1,2,2)".',
)
allow_partial = option(
    "--allow-partial",
    is_flag=True,
    help="If the checkpoint does not fit the model, load the parameters that fit.",
)
unsafe_load = option(
    "--unsafe-load",
    is_flag=True,
    help="Load a checkpoint that contains more than weights. This runs any code in the file.",
)
device = option(
    "--device",
    default="auto",
    metavar="DEVICE",
    callback=spelt_device,
    help="cpu, cuda, cuda:1 or auto: a GPU if there is one.",
)
backend = option(
    "--backend",
    type=click.Choice(tuple(BACKENDS.values())),
    help="Runtime of an exported file (default: the one for its ending).",
)

# MODEL and --checkpoint, for dcnzoo.zoo.source.resolve; test and export have the argument CHECKPOINT
model = click.argument("model", type=MODEL, callback=existing_model)
checkpoint = option(
    "--checkpoint",
    type=NAME,
    callback=existing_checkpoint,
    metavar="FILE",
    help="File with weights; best or last of a work directory (default: its best, or those of the zoo).",
)
checkpoint_argument = click.argument(
    "checkpoint", type=NAME, required=False, callback=existing_checkpoint, metavar="[CHECKPOINT]"
)

channels_last = option(
    "--no-channels-last",
    "channels_last",
    is_flag=True,
    flag_value=False,
    default=True,
    show_default=False,
    help="On a CPU, do not compute in channels-last order, which is faster and differs by rounding.",
)

verbose = option("--verbose", is_flag=True, help="Print mmengine's whole log, which the log file always has.")

# dcnzoo.data.dataset.ReadOptions
reading = combined(
    option("--zero-based", is_flag=True, help="With --data of Pascal VOC: coordinates are edges from 0."),
    option("--clip", is_flag=True, help="With --data: clip objects to their images, and print the number."),
    option(
        "--skip-invalid",
        is_flag=True,
        help="With --data: leave out invalid objects and images, and print the number.",
    ),
)

# dcnzoo.openmmlab.options.RunOptions, and cfg_options
runner = combined(
    option(
        "--work-dir",
        type=NAME,
        metavar="FOLDER",
        help="Write logs and results to this folder (default: work_dirs/<name of the config>).",
    ),
    cfg_options,
    option(
        "--launcher",
        type=click.Choice(["none", "pytorch", "slurm", "mpi"]),
        default=lambda: "pytorch" if "TORCHELASTIC_RUN_ID" in os.environ else "none",
        show_default="none, pytorch under torchrun",
        help="Launcher of a distributed run.",
    ),
    device,
    channels_last,
    allow_partial,
    verbose,
    # an argument of torch.distributed.launch, which also sets LOCAL_RANK
    option("--local-rank", "--local_rank", type=int, expose_value=False, hidden=True),
)

# the arguments of dcnzoo.load
loading = combined(checkpoint, device, unsafe_load, allow_partial, cfg_options)
