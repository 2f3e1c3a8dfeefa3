"""``dcnzoo doctor``: list installed versions, the problems, and the commands that fix them."""

import sys

import click

from dcnzoo import diagnosis
from dcnzoo.cli import _command
from dcnzoo.utils.errors import show
from dcnzoo.utils.folders import cache_folder
from dcnzoo.utils.text import columns, counted


@click.command(cls=_command.Command)
def command() -> None:
    """Print installed versions, and each problem of the installation and how to fix it.

    Exit with status 1 if there is a problem.
    """
    show(*columns([*diagnosis.environment(), ("weights", f"downloaded to {cache_folder()}")]))
    problems = list(diagnosis.problems(diagnosis.Installation.here()))
    for problem in problems:
        print(f"\nproblem: {problem}\n    fix: {problem.remedy}")
    print(f"\n{counted(len(problems), 'problems') if problems else 'no problems'} found")
    sys.exit(bool(problems))
