"""Options that several commands share, and option types for MMDetection's command-line syntax."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.utils.files import require_file

if TYPE_CHECKING:
    from torch import nn

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


class Option(click.Option):
    """An option that can have several values, or aliases. ``--help`` shows its default.

    Args:
        several: take all words up to the next option, like argparse's ``nargs="+"``: ``--keys loss
            bbox_mAP``.
        aliases: spellings that help and completion do not show.
    """

    def __init__(
        self, *names: Any, several: bool = False, aliases: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*names, **{"show_default": True, "multiple": several, **kwargs})
        self.several, self.aliases = several, aliases


class Command(click.Command):
    """A command that supports :class:`Option` and unique prefixes of options, as argparse does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse ``--ke loss bbox_mAP`` as ``--keys=loss --keys=bbox_mAP``."""
        options = {
            name: option
            for option in self.get_params(ctx)
            for name in (*option.opts, *getattr(option, "aliases", ()))
            if name.startswith("--")
        }
        words, rest = [], list(args)
        while rest and rest[0] != "--":
            name, equals, value = rest.pop(0).partition("=")
            meant = (
                {options[name]}
                if name in options
                else {option for full, option in options.items() if len(name) > 2 and full.startswith(name)}
            )
            option = meant.pop() if len(meant) == 1 else None
            if option is not None:
                name = option.opts[0]
            if not getattr(option, "several", False) or equals:
                words.append(name + equals + value)
                continue
            count = next((i for i, word in enumerate(rest) if re.match(r"-(?!\.?\d)", word)), len(rest))
            words += [f"{name}={value}" for value in rest[:count]] or [name]
            if not count and not ctx.resilient_parsing:
                raise click.BadOptionUsage(name, f"Option {name!r} requires an argument.", ctx)
            del rest[:count]
        return super().parse_args(ctx, words + rest)


class Group(click.Group):
    command_class = Command


def combined(*decorators: Callable) -> Callable[[Callable], Callable]:
    """Combine decorators into one. ``--help`` lists their options in this order."""

    def decorate(function: Callable) -> Callable:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def option(*names: str, **kwargs: Any) -> Callable:
    return click.option(*names, cls=Option, **kwargs)


def existing(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback: require files, before the imports of OpenMMLab, which take seconds."""
    for path in () if ctx.resilient_parsing or not value else [value] if isinstance(value, str) else value:
        require_file(path, param.name.removesuffix("s"))
    return value


class ConfigFile(click.Path):
    """A config file, or a config of an installed package: ``dcnzoo::FOLDER/FILE.py``."""

    name = "config"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "::" not in value or (ctx and ctx.resilient_parsing):
            return value
        from dcnzoo.openmmlab.runner import config_file

        return config_file(value)


class FileName(click.Path):
    """The name of an output file, which must end in one of ``endings``."""

    def __init__(self, *endings: str) -> None:
        super().__init__(path_type=Path)
        self.endings = endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).endswith(self.endings):
            self.fail(f"expected a name that ends in {' or '.join(self.endings)}, got {value}", param, ctx)
        return super().convert(value, param, ctx)


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
    import dcnzoo.openmmlab  # noqa: F401  before mmengine

    # isort: split
    from mmengine.config import DictAction

    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"expected KEY=VALUE, got {word}", ctx, param)
        try:
            settings[key] = DictAction._parse_iterable(value)
        except AssertionError as error:
            raise click.BadParameter(f"{key}: {error}", ctx, param) from error
    return settings


def settings(name: str, help: str) -> Callable:
    """An option such as ``--cfg-options a=1 b.c="(1,2)"``; the command receives a dictionary."""
    return option(name, several=True, metavar="KEY=VALUE...", callback=_settings, help=help)


def _height_and_width(
    ctx: click.Context, param: click.Parameter, sizes: Sequence[int]
) -> tuple[int, int] | None:
    if len(sizes) > 2 or min(sizes, default=1) < 1:
        given = " ".join(map(str, sizes))
        raise click.BadParameter(f"expected one or two sizes ≥ 1, got {given}", ctx, param)
    return (sizes[0], sizes[-1]) if sizes else None


def shape(help: str) -> Callable:
    """``--shape HEIGHT WIDTH``, or one size for both. The command receives ``(height, width)`` or None."""
    return option("--shape", several=True, type=int, metavar="SIZE...", callback=_height_and_width, help=help)


def backend(help: str) -> Callable:
    """The option ``--backend``: the runtime of an exported model."""
    choices = click.Choice(["onnxruntime", "openvino", "aotinductor"])
    return option("--backend", type=choices, default="onnxruntime", help=help)


def num_images(least: int, default: int | None, help: str) -> Callable:
    """The option ``--num-images``, which must be at least ``least``."""
    kind = click.IntRange(min=least)
    return option("--num-images", aliases=["--number", "--images"], type=kind, default=default, help=help)


config = click.argument("config", type=ConfigFile())
cfg_options = settings(
    "--cfg-options",
    "Override settings of the config: model.backbone.dcn=True train_dataloader.batch_size=4 "
    '"model.backbone.strides=(1,2,2)".',
)
allow_partial = option(
    "--allow-partial",
    is_flag=True,
    help="If the checkpoint does not fit the model, load the parameters that fit.",
)
unsafe_load = option(
    "--unsafe-load",
    aliases=["--trust"],
    is_flag=True,
    help="Load a checkpoint that contains more than weights. This runs any code in the file.",
)

device = option("--device", default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:1.")

# the arguments of dcnzoo.openmmlab.runner.load_config
runner = combined(
    config,
    option(
        "--work-dir",
        metavar="FOLDER",
        help="Write logs and results to this folder (default: work_dirs/<name of the config>).",
    ),
    cfg_options,
    option(
        "--launcher",
        type=click.Choice(["none", "pytorch", "slurm", "mpi"]),
        default="none",
        help="Launcher of a distributed run.",
    ),
    # torchrun sets LOCAL_RANK; older launchers pass it as an argument
    option("--local-rank", "--local_rank", type=int, default=0, hidden=True),
)


def _model(required: bool) -> Callable:
    """The options for :func:`load_model`."""
    return combined(
        option(
            "--model",
            required=required,
            metavar="NAME",
            help="Name in the zoo (dcnzoo zoo list), or a config file.",
        ),
        option(
            "--checkpoint",
            callback=existing,
            metavar="FILE",
            help="File with weights (default: the zoo's; required with a config file).",
        ),
        device,
        unsafe_load,
        allow_partial,
        cfg_options,
    )


model, optional_model = _model(required=True), _model(required=False)


def load_model(
    model: str, checkpoint: str | None, device: str, unsafe_load: bool, allow_partial: bool, cfg_options: dict
) -> nn.Module:
    """Load the detector that the options of :data:`model` select."""
    from dcnzoo import zoo
    from dcnzoo.utils.errors import user_errors

    with user_errors():
        return zoo.load(
            model,
            checkpoint=checkpoint,
            device=device,
            unsafe_load=unsafe_load,
            cfg_options=cfg_options,
            allow_partial=allow_partial,
        )
