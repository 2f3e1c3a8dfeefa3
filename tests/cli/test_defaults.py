"""An option has one default: in the function, in the class of options and in the command."""

import dataclasses
import inspect

import click
import pytest

import dcnzoo
from dcnzoo.data.dataset import ReadOptions
from dcnzoo.export.options import ExportOptions
from dcnzoo.openmmlab import options
from dcnzoo.report.report import write_report
from dcnzoo.zoo.testing import reproduce

from .test_cli import every_command

COMMANDS = {context.info_name.removeprefix("dcnzoo "): context.command for context in every_command()}

# the command, the functions and classes that have the same options, and the number of these in common
SAME = [
    ("train", dcnzoo.train, 10),  # it passes the others to TrainOptions
    ("train", options.TrainOptions, 14),
    ("test", dcnzoo.test, 3),
    ("test", options.TestOptions, 13),
    ("export", ExportOptions, 7),
    ("reproduce", reproduce, 5),
    ("data convert", ReadOptions, 4),
    ("report", write_report, 7),
]
# on purpose: the command of reports may take a GPU
OTHER = {("report", "device")}


def defaults_of(owner):
    if dataclasses.is_dataclass(owner):
        defaults = {field.name: field.default for field in dataclasses.fields(owner)}
    else:
        defaults = {name: each.default for name, each in inspect.signature(owner).parameters.items()}
    missing = (dataclasses.MISSING, inspect.Parameter.empty)
    return {name: value for name, value in defaults.items() if value not in missing}


def value_of(param, context):
    """Return the value of an option that is not given, as the function's: nothing is None, False or ()."""
    value = param.get_default(context)
    return None if "UNSET" in repr(value) or not value else value


@pytest.mark.parametrize(("name", "owner", "least"), SAME, ids=lambda value: getattr(value, "__name__", None))
def test_of_the_command_and_of_python(name, owner, least):
    command, defaults = COMMANDS[name], defaults_of(owner)
    context = click.Context(command)
    given = {param.name: value_of(param, context) for param in command.params if param.name in defaults}
    compared = [option for option in given if (name, option) not in OTHER]
    assert len(compared) >= least
    for option in compared:
        assert (defaults[option] or None) == given[option], option
