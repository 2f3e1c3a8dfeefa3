"""The command ``dcnzoo``, also ``python -m dcnzoo``.

Every module of this folder is a subcommand, except those whose names begin with an underscore. It defines
``command``, a ``click`` command or group, and is imported when it is called or listed. Its imports at the top
are light; slow ones, such as torch and OpenMMLab, are inside the functions that use them.
"""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from dcnzoo.utils import errors
from dcnzoo.version import __version__


class Commands(click.Group):
    """The modules of this folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = (module.name for module in pkgutil.iter_modules(__path__))
        return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").command

    def invoke(self, ctx: click.Context) -> object:
        try:
            with errors.quiet_broken_pipe():  # click would exit with 1
                return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(130)  # as the tools do; click would say 1


# in the repository a link to tools/, in an installed package the folder itself
TOOLS = Path(__file__).parents[1] / ".mim" / "tools"
# functions that add arguments to those of a tool
SHARED = Path(__file__).with_name("_arguments.py")


class Door(click.Command):
    """A tool as a subcommand; completes the tool's options."""

    script: Path

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in options_of(self.script) if name.startswith(incomplete)]


def options_of(script: Path) -> list[str]:
    """The long options of a tool, read from its source: to import it takes longer than anybody waits."""
    shared = {
        node.name: node
        for node in ast.parse(SHARED.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    found, scanned = ["--help"], set()

    def scan(tree: ast.AST) -> Iterator[str]:
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", None))
            hidden = any(getattr(keyword.value, "attr", None) == "SUPPRESS" for keyword in call.keywords)
            if name in ("add_argument", "add") and not hidden:
                yield from (
                    a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
                )
            elif name in shared and name not in scanned:
                scanned.add(name)
                yield from scan(shared[name])

    found += [text for text in scan(ast.parse(script.read_text(encoding="utf-8"))) if text.startswith("--")]
    return sorted(set(found))


def door(name: str, tool: str, help: str) -> click.Command:
    """The subcommand ``name`` that is ``tools/{tool}.py``: what follows it on the line is the tool's."""

    @click.command(
        name,
        cls=Door,
        help=f"{help}\n\nThe options are those of tools/{tool}.py: dcnzoo {name} --help.",
        short_help=help,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=_files)
    def command(arguments: tuple[str, ...]) -> None:
        script = (TOOLS / f"{tool}.py").resolve()
        sys.argv = [f"dcnzoo {name}", *arguments]
        sys.path.insert(0, str(script.parent))  # as Python does for a script
        importlib.import_module(script.stem).main()

    command.script = TOOLS / f"{tool}.py"
    return command


def _files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]  # the shell knows them


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="dcnzoo")
def commands() -> None:
    """Deformable convolution for object detection.

    \b
    examples:
      dcnzoo doctor
      dcnzoo train CONFIG --cfg-options model.backbone.dcn=True --report
      dcnzoo infer IMAGE --model faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco
      dcnzoo COMMAND --help
    """


main = errors.command(commands)
