"""``dcnzoo bench``: runs ``tools/benchmark/ops.py``, which a wheel holds too."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

# in the repository a link to tools/, in an installed package the folder itself
FOLDER = Path(__file__).parents[1] / ".mim" / "tools" / "benchmark"


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def command(options: tuple[str, ...]) -> None:
    """Time the operators beside other implementations of them."""
    sys.argv = ["dcnzoo bench", *options]
    sys.path.insert(0, str(FOLDER.resolve()))  # as Python does for a script
    importlib.import_module("ops").main(prog_name=sys.argv[0])
