"""Run commands in this process. Starting Python and importing torch takes longer than most commands."""

import sys

import click
from click.testing import CliRunner

from dcnzoo.cli import commands


def forget_runs() -> None:
    """Delete mmengine's global scope, logger and visualizer, which the next Runner would reuse."""
    if "mmengine.utils" not in sys.modules:
        return
    managers = [sys.modules["mmengine.utils"].ManagerMixin]
    for manager in managers:
        managers += manager.__subclasses__()
        manager._instance_dict.clear()


def invoke(*arguments: object) -> tuple[int, str]:
    """Exit status and output of ``dcnzoo ARGUMENTS``. Exceptions other than SystemExit propagate."""
    forget_runs()
    result = CliRunner().invoke(commands, [*map(str, arguments)])
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result.exit_code, result.output


def run(*arguments: object, status: int = 0) -> str:
    """The output of a command. Fails the test and shows the output if the exit status is unexpected."""
    found, output = invoke(*arguments)
    assert found == status, output[-6000:]
    return output


def error_of(*arguments: object, status: int = 1) -> str:
    """The last line of a failing command. Asserts that it prints no traceback."""
    output = run(*arguments, status=status)
    assert "Traceback" not in output
    line = output.splitlines()[-1]
    assert line.lower().startswith("error: "), output
    return line


def every_command(command=commands, name="dcnzoo"):
    """Yield the context of a command and of all commands below it."""
    context = click.Context(command, info_name=name, terminal_width=100, **command.context_settings)
    yield context
    for each in command.list_commands(context) if isinstance(command, click.Group) else ():
        yield from every_command(command.get_command(context, each), f"{name} {each}")
