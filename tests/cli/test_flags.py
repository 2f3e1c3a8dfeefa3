"""Errors of a command name its options and arguments as the command line does."""

import dataclasses
import importlib
import inspect

import click
import pytest

import dcnzoo
from dcnzoo.cli import _command, data
from dcnzoo.data.dataset import ReadOptions
from dcnzoo.openmmlab import options
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.own_data import DataOptions
from tests.helpers.commands import every_command

COMMANDS = [each for each in every_command() if isinstance(each.command, _command.Command)]


@pytest.mark.parametrize("context", COMMANDS, ids=lambda context: context.info_name)
def test_names_of_arguments(context):
    for param in context.command.params:
        if getattr(param, "hidden", False):  # another word for an option, which messages do not name
            continue
        name, typed = param.name, param.opts[0]
        if isinstance(param, click.Argument):
            typed = (param.metavar or name).strip("[].").upper()
        with_flags = context.command.with_flags
        assert with_flags(f"{name}: expected a path") == f"{typed}: expected a path"
        switch = str(not (param.is_flag and typed.startswith("--no-"))) if typed[0] == "-" else "x"
        value = " x" if switch == "x" else ""
        lines = (f"a: got b; {name}={switch} helps, {name}={switch}", f"{typed}{value} helps, {typed}{value}")
        assert with_flags(lines[0]) == f"a: got b; {lines[1]}"
        if isinstance(param, click.Option) and not param.is_flag:
            assert with_flags(f"{name}='d/e.f' helps.") == f"{typed} d/e.f helps."
        if "_" in name:
            assert with_flags(f"use another {name}, or {name}.") == f"use another {typed}, or {typed}."
        for text in (f"a/{name}/b", f"model.{name}=3", f"x{name}=1", f"in {name}/b", f"{name}x=2"):
            assert with_flags(text) == text


@click.command(cls=_command.Command)
@click.option("--work-dir", callback=lambda context, param, value: fail(value, "given"))
@click.option("--skip-invalid", is_flag=True)
def command(work_dir, skip_invalid):
    fail("ran", "ran")


def fail(value, expected):
    if value == expected:
        raise UserError("work_dir: expected a folder", "… and 5 more; skip_invalid=True leaves them out")


@pytest.mark.parametrize("line", [["--work-dir", "given"], []])
def test_each_line_of_an_error(line):
    """Errors of callbacks, too."""
    with pytest.raises(UserError) as raised:
        command.main(line, standalone_mode=False)
    assert raised.value.args == (
        "--work-dir: expected a folder",
        "… and 5 more; --skip-invalid leaves them out",
    )


def test_each_word_is_replaced_once():
    """Neither the typed option nor its value is read again."""
    parameters = [click.Option(["--out"]), click.Argument(["model"]), click.Option(["--work-dir"])]
    with_flags = _command.Command("x", params=parameters).with_flags
    assert with_flags("model: out=work_dir, work_dir=out") == "MODEL: --out work_dir, --work-dir out"


def names(*sources):
    """The parameters of commands and functions, and the fields of classes."""
    result = set()
    for source in sources:
        if isinstance(source, click.Command):
            result |= {param.name for param in source.params if param.expose_value}
        elif inspect.isfunction(source):
            result |= {*inspect.signature(source).parameters}
        else:
            result |= {field.name for field in dataclasses.fields(source)}
    return result


def test_options_of_commands_are_those_of_functions():
    train, test = (importlib.import_module(f"dcnzoo.cli.{name}").command for name in ("train", "test"))
    not_options = {"options", "outputs", "on_data", "classes"}  # a command of `data` writes other classes
    assert names(train) - {"report"} == names(dcnzoo.train, options.TrainOptions, DataOptions) - not_options
    assert names(test) == names(dcnzoo.test, options.TestOptions) - {"options", "exported"}
    assert names(ReadOptions) == names(data.convert) - {"source", "out", "force"}
    assert names(ReadOptions) - {"classes"} == names(data.check) - {"source", "as_mmdetection"}


def test_an_error_of_a_command_without_parameters():
    @click.command(cls=_command.Command)
    def alone():
        raise ValueError("x: expected a name, got y")

    with pytest.raises(UserError, match="x: expected a name, got y"):
        alone.main([], standalone_mode=False)
