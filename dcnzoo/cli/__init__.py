"""The command ``dcnzoo``, also ``python -m dcnzoo``.

Every module in this folder is a subcommand, except modules with a leading underscore. It defines ``command``,
a ``click`` command or group, and is imported when the command is called or listed. Slow packages, such as
torch and OpenMMLab, are imported inside the functions that use them, so that ``--help`` stays fast.
"""

import importlib
import pkgutil
import sys
import warnings
from typing import Any

import click

from dcnzoo.cli._command import Group
from dcnzoo.cli._terminal import one_line_errors
from dcnzoo.version import __version__


class Commands(Group):
    """A group of the modules in this folder."""

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context | None, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"{__name__}.{name}").command
        command.name = name
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with one_line_errors():  # covers --help, too
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line_errors():  # handles interruptions and broken pipes before click does
            return super().invoke(ctx)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, package_name="dcnzoo")
def commands() -> None:
    """Use deformable convolution for object detection.

    \b
    examples:
      dcnzoo doctor
      dcnzoo train CONFIG --cfg-options model.backbone.dcn=True --report
      dcnzoo infer faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco IMAGE
      dcnzoo COMMAND --help
    """


def main(*command: str) -> None:
    """Run the command line. Programs in ``tools/`` pass a command, which gets the rest of the line."""
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)  # of mmengine and mmcv
    commands.main([*command, *sys.argv[1:]], prog_name="dcnzoo")
