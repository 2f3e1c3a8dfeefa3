"""``dcnzoo run``: run a program that does not import dcnzoo, with dcnzoo's versions of compiled modules."""

import os
import runpy
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path

import click

from dcnzoo.utils.errors import UserError, user_errors


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--provide", "names", metavar="NAME,…", help="Provide these modules, in addition to DCNZOO_PROVIDE."
)
@click.option(
    "--import",
    "first",
    multiple=True,
    metavar="MODULE",
    help="Import this module first, such as dcnzoo.models.",
)
@click.option("--cpu", is_flag=True, help="Run the program's CUDA calls on the CPU.")
@click.option("-m", "module", is_flag=True, help="SCRIPT is a module name, as in python -m.")
@click.argument("script", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    names: str | None, first: tuple[str, ...], cpu: bool, module: bool, script: str, args: tuple[str, ...]
) -> None:
    """Run a program with dcnzoo's compiled modules.

    dcnzoo's operators replace compiled modules that the program lacks. The program needs no change: the
    effect is the same as with import dcnzoo and dcnzoo.compat.provide at its start. ARGS are passed to the
    program. If torchvision's operators do not load, dcnzoo defines them.

    \b
    examples:
      dcnzoo run --provide MultiScaleDeformableAttention main.py results
      dcnzoo run --cpu --provide dcn_v2 src/demo.py mot
      dcnzoo run --import dcnzoo.models mmyolo/tools/train.py CONFIG
      torchrun --nproc_per_node 2 -m dcnzoo run --provide DCNv3 main.py --cfg FILE
    """
    with user_errors():
        provide("torchvision", *(name.strip() for name in (names.split(",") if names else ())))
    if not module and not Path(script).is_file():
        raise UserError(f"run: SCRIPT: expected a Python file, got {script}")
    for name in first:
        import_module(name)
    sys.argv = [script, *args]
    sys.path[0] = os.getcwd() if module else str(Path(script).resolve().parent)  # as Python does for a script
    context: AbstractContextManager = nullcontext()
    if cpu:
        from dcnzoo.compat.cpu import on_cpu  # imports torch

        context = on_cpu()
        click.echo(f"run: --cpu: CUDA calls of {script} run on the CPU", err=True)
    try:
        with context:
            if module:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script, run_name="__main__")
    except Exception:  # an error of the program: always print its traceback
        traceback.print_exc()
        sys.exit(1)
