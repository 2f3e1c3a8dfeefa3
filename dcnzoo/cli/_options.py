"""Options that several commands share."""

import os
import re
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dcnzoo.cli._command import Several
from dcnzoo.cli._types import NAME, POSITIVE
from dcnzoo.utils.files import require_file, require_new
from dcnzoo.utils.folders import CHECKPOINTS
from dcnzoo.utils.formats import BACKENDS, EXPORTED

option = click.option


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
    _refuse(f"not allowed with {reason}", names)


def refuse_without(needed: str, *names: str) -> None:
    """Raise UsageError if one of the parameters is on the command line, for ``needed`` is not."""
    _refuse(f"allowed only with {needed}", names)


def _refuse(text: str, names: Sequence[str]) -> None:
    context = click.get_current_context()
    for param in context.command.params:
        given = context.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
        if param.name in names and given:
            raise click.UsageError(f"{param.opts[0]}: {text}", context)


def refuse_exported(model: str) -> None:
    """Raise UsageError if MODEL is an exported file."""
    if model.endswith(EXPORTED):
        raise click.UsageError(f"MODEL: expected a model of PyTorch, got the exported file {model}")


def output_file(path: Path, force: bool) -> Path:
    """:func:`dcnzoo.utils.files.require_new` for the running command."""
    return require_new(click.get_current_context().command_path.partition(" ")[2], path, force=force)


def switch_off(flag: str, help: str) -> Callable:
    """``--no-NAME``: the command receives NAME, which is True without the option."""
    name = flag.removeprefix("--no-").replace("-", "_")
    return option(flag, name, flag_value=False, default=True, show_default=False, help=help)


def shape(help: str) -> Callable:
    """``--shape HEIGHT WIDTH``, or one number for both: the command receives two integers, or None."""
    return option(
        "--shape", cls=Several, accepts=str.isdecimal, type=POSITIVE, callback=_two_sides,
        metavar="HEIGHT WIDTH", help=help,
    )  # fmt: skip


def _two_sides(ctx: click.Context, param: click.Parameter, sides: Sequence[int]) -> tuple[int, int] | None:
    if len(sides) > 2:
        raise click.BadParameter(f"expected HEIGHT WIDTH, got {' '.join(map(str, sides))}", ctx, param)
    return (sides[0], sides[-1]) if sides else None


def num_images(default: int | None, help: str) -> Callable:
    return option("--num-images", type=POSITIVE, default=default, help=help)


force = option("--force", is_flag=True, help="Replace files that exist.")
cfg_options = option(
    "--cfg-options", cls=Several, accepts=lambda word: "=" in word, metavar="KEY=VALUE", callback=_settings,
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
channels_last = switch_off("--no-channels-last", "On a CPU, do not compute in channels-last order.")
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
