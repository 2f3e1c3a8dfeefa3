"""``dcnzoo run``: a program that does not import dcnzoo, with the compiled modules that it needs."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from importlib import import_module
from pathlib import Path

import click

from dcnzoo.compat import provide
from dcnzoo.utils.errors import UserError, user_errors


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--provide", "names", metavar="NAME,…", help="Compiled modules, in addition to DCNZOO_PROVIDE.")
@click.option("--import", "first", multiple=True, metavar="MODULE", help="Import this first: dcnzoo.models.")
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, as in python -m.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    names: str | None, first: tuple[str, ...], module: bool, script: str, args: tuple[str, ...]
) -> None:
    """Run a Python program, with compiled modules that are missing on dcnzoo's operators.

    As ``import dcnzoo`` and ``dcnzoo.compat.provide`` at the beginning of the program, which stays as it is.
    ARGS are the program's.

    \b
    examples:
      dcnzoo run --provide MultiScaleDeformableAttention main.py results
      dcnzoo run --import dcnzoo.models mmyolo/tools/train.py CONFIG
      torchrun --nproc_per_node 2 -m dcnzoo run --provide DCNv3 main.py --cfg FILE
    """
    if names:
        with user_errors():
            provide(*(name.strip() for name in names.split(",")))
    if not module and not Path(script).is_file():
        raise UserError(f"run: SCRIPT: expected a Python file, got {script}")
    for name in first:
        import_module(name)
    sys.argv = [script, *args]
    sys.path[0] = os.getcwd() if module else str(Path(script).resolve().parent)
    try:
        if module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    except Exception:  # the program's own: with its traceback, whatever it is
        traceback.print_exc()
        sys.exit(1)
