"""The command ``dcnzoo``: its commands are the modules of a folder, a mistake ends in one line."""

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points

import click
import pytest
from click.testing import CliRunner

import dcnzoo.cli
from dcnzoo.errors import UserError

from .test_import import OPENMMLAB, run

MODULES = sorted(module.name for module in pkgutil.iter_modules(dcnzoo.cli.__path__))


def test_every_module_is_a_command():
    result = CliRunner().invoke(dcnzoo.cli.commands, ["--help"])
    listed = result.output.partition("Commands:")[2].split("\n")
    assert [line.split()[0] for line in listed if line] == [name.replace("_", "-") for name in MODULES]
    assert all(len(line.split()) > 2 for line in listed if line), "each says what it does"


@pytest.mark.parametrize("name", MODULES)
def test_importing_a_command_is_light(name):
    heavy = "[name for name in ('torch', 'mmengine', 'mmdet', 'requests') if name in sys.modules]"
    assert run(f"import sys, dcnzoo.cli.{name}\nprint({heavy})").strip() == "[]"


def test_env_needs_torch_only():
    absent = "\n".join(f"sys.modules[{name!r}] = None  # as if not installed" for name in OPENMMLAB)
    output = run(f"import sys\n{absent}\nsys.argv = ['dcnzoo', 'env']\nfrom dcnzoo.cli import main\nmain()")
    assert "cpu operators" in output and "none: mmcv is not installed" in output


def test_unknown_command():
    result = subprocess.run([sys.executable, "-m", "dcnzoo", "nope"], capture_output=True, text=True)
    assert result.returncode == 2 and "No such command 'nope'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["train", "test", "export", "bench", "infer", "explain"])
def test_tool_has_a_door(name):
    command = [sys.executable, "-m", "dcnzoo", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: dcnzoo {name} [-h]"), "the tool's own help"


def test_what_follows_a_door_is_the_tools():
    command = [sys.executable, "-m", "dcnzoo", "train", "nowhere.py", "--work-dir", "x", "--amp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: "), done.stderr
    assert "nowhere.py" in done.stderr and "Traceback" not in done.stderr


def fails(error):
    @click.command()
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("name: expected a\n model, got none"), "error: name: expected a model, got none"),
        (FileNotFoundError(2, "No such file", "x.yml"), "error: file not found: x.yml"),
    ],
)
def test_mistakes_get_one_line(error, text, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dcnzoo", "fails"])
    monkeypatch.setattr(dcnzoo.cli.Commands, "get_command", lambda *_: fails(error))
    with pytest.raises(SystemExit) as stopped:
        dcnzoo.cli.main()
    assert stopped.value.code == text
    monkeypatch.setenv("DCNZOO_TRACEBACK", "1")
    with pytest.raises(type(error)):
        dcnzoo.cli.main()


def test_console_script():
    """What ``pip install`` puts on the path is what ``python -m dcnzoo`` runs."""
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    if "dcnzoo" not in scripts:
        pytest.skip("dcnzoo was installed before it had a console script")
    module, _, name = scripts["dcnzoo"].partition(":")
    assert getattr(importlib.import_module(module), name) is dcnzoo.cli.main
