"""``dcnzoo run``: run a program that does not import dcnzoo, with dcnzoo's versions of compiled modules."""

import os
import runpy
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from dcnzoo.compat.compiled import BY_DEFAULT, TORCHVISION, provide
from dcnzoo.utils.errors import UserError, user_errors


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--provide",
    "names",
    metavar="NAME,…",
    help=f"Modules to provide as well, if they are missing; always: {', '.join(BY_DEFAULT)}.",
)
@click.option(
    "--import",
    "first",
    multiple=True,
    metavar="MODULE",
    help="Import this module first, such as dcnzoo.models.",
)
@click.option("-m", "module", is_flag=True, help="SCRIPT is a module name, as in python -m.")
@click.argument("script", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    names: str | None, first: tuple[str, ...], module: bool, script: str, args: tuple[str, ...]
) -> None:
    """Run a program with dcnzoo's compiled modules.

    dcnzoo's operators replace compiled modules that the program lacks. The program needs no change: the
    effect is the same as with dcnzoo.provide at its start, also with dcnzoo.provide("torchvision"). ARGS are
    passed to the program.

    \b
    examples:
      dcnzoo run main.py results
      dcnzoo run --provide _ext demo.py mot
      dcnzoo run --provide basicsr.ops.dcn.deform_conv_ext basicsr/train.py -opt FILE
      dcnzoo run --import dcnzoo.models tools/train.py CONFIG
      torchrun --nproc_per_node 2 -m dcnzoo run --provide DCNv3 main.py --cfg FILE
    """
    if not module and not Path(script).is_file():
        raise UserError(f"run: SCRIPT: expected a Python file, got {script}")
    sys.argv = [script, *args]
    sys.path[0] = os.getcwd() if module else str(Path(script).resolve().parent)  # as Python does for a script
    with user_errors():
        given = [name.strip() for name in names.split(",")] if names else []
        provide(TORCHVISION, *BY_DEFAULT, *given)
    try:
        for name in first:
            import_module(name)
        if not module:
            runpy.run_path(script, run_name="__main__")
        elif _exists(script):
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            sys.exit(f"{sys.executable}: No module named {script}")  # as Python does
    except Exception:  # an error of the program: always print its traceback
        traceback.print_exc()
        sys.exit(1)


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError as error:  # of a package above it; others are errors of the program
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        return False
