"""``dcnzoo doctor``: list installed versions, the problems, and the commands that fix them."""

import sys
from importlib.util import find_spec

import click

from dcnzoo import diagnosis
from dcnzoo.cli import _options
from dcnzoo.cli._terminal import print_columns
from dcnzoo.utils.folders import cache_folder
from dcnzoo.utils.text import counted


@click.command(cls=_options.Command)
@click.option(
    "--for",
    "package",
    type=click.Choice(diagnosis.PACKAGES),
    help="Also check one of OpenMMLab's other packages.",
)
@click.option("--patches", is_flag=True, help="Also list the patches of other packages, and their reasons.")
def command(package: str | None, patches: bool) -> None:
    """Print installed versions, and each problem of the installation and how to fix it.

    Exit with status 1 if there is a problem.

    \b
    examples:
      dcnzoo doctor
      dcnzoo doctor --for mmseg
    """
    lines = [*diagnosis.environment(), ("weights", f"downloaded to {cache_folder()}")]
    installation = diagnosis.Installation.here()
    problems = list(diagnosis.problems(installation))
    if package and not problems:
        problems += diagnosis.package_problems(package)
    if patches and find_spec("mmengine") and not problems:
        lines += [("patch", f"{name}: {text}") for name, text in diagnosis.patch_lines()]
    print_columns(lines)
    for problem in problems:
        print(f"\nproblem: {problem}\n    fix: {problem.remedy}")
    print(f"\n{counted(len(problems), 'problems') if problems else 'no problems'} found")
    sys.exit(1 if problems else 0)
