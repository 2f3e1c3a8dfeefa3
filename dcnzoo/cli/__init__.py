"""The command ``dcnzoo``, also ``python -m dcnzoo``.

Every module of this folder is a subcommand, found by its name and imported when it is called or
listed: a ``click`` command or group called ``command``. Its imports at the top are light; what takes
time, torch and OpenMMLab included, is imported where it is used.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

import click

from dcnzoo import errors
from dcnzoo.version import __version__


class Commands(click.Group):
    """The modules of this folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").command


# in the repository a link to tools/, in an installed package the folder itself
TOOLS = Path(__file__).parents[1] / ".mim" / "tools"


def door(name: str, tool: str, help: str) -> click.Command:
    """The subcommand ``name`` that is ``tools/{tool}.py``: what follows it on the line is the tool's."""

    @click.command(
        name,
        help=f"{help}\n\nThe options are those of tools/{tool}.py: dcnzoo {name} --help.",
        short_help=help,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        script = (TOOLS / f"{tool}.py").resolve()
        sys.argv = [f"dcnzoo {name}", *arguments]
        sys.path.insert(0, str(script.parent))  # as Python does for a script
        importlib.import_module(script.stem).main()

    return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="dcnzoo")
def commands() -> None:
    """Deformable convolution for object detection."""


main = errors.command(commands)
