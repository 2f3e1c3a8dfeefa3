"""Commands in this process: to start Python and import torch takes longer than most of them."""

import sys

from click.testing import CliRunner

from dcnzoo.cli import commands


def forget_runs() -> None:
    """A Runner leaves its scope, logger and visualizer behind, which whatever comes next would take."""
    if "mmengine.utils" not in sys.modules:
        return
    managers = [sys.modules["mmengine.utils"].ManagerMixin]
    for manager in managers:
        managers += manager.__subclasses__()
        manager._instance_dict.clear()


def invoke(*arguments: object) -> tuple[int, str]:
    """Exit status of ``dcnzoo ARGUMENTS`` and what it prints; other exceptions than SystemExit are raised."""
    forget_runs()
    result = CliRunner().invoke(commands, [*map(str, arguments)])
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result.exit_code, result.output


def run(*arguments: object, status: int = 0) -> str:
    """The output of a command; fails with it if the exit status is another."""
    found, output = invoke(*arguments)
    assert found == status, output[-6000:]
    return output


def error_of(*arguments: object, status: int = 1) -> str:
    """The line with which a command ends: without a traceback, and the only one after what it logs."""
    output = run(*arguments, status=status)
    assert "Traceback" not in output
    line = output.splitlines()[-1]
    assert line.lower().startswith("error: ")
    return line
