"""The command ``dcnzoo``, also ``python -m dcnzoo``.

Every module of this folder is a subcommand, found by its name and imported when it is called or
listed: a ``click`` command or group called ``command``. Its imports at the top are light; what takes
time, torch and OpenMMLab included, is imported where it is used.
"""

import importlib
import pkgutil

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


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="dcnzoo")
def commands() -> None:
    """Deformable convolution for object detection."""


main = errors.command(commands)
