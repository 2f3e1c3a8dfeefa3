"""The command ``dcnzoo``: its commands are the modules of a folder, a mistake ends in one line."""

import importlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import dcnzoo.cli
from dcnzoo.utils.errors import UserError

from .test_import import OPENMMLAB, run

NAMES = sorted(module.name for module in pkgutil.iter_modules(dcnzoo.cli.__path__))
MODULES = [name for name in NAMES if not name.startswith("_")]
DOORS = [
    name
    for name in MODULES
    if isinstance(dcnzoo.cli.commands.get_command(None, name.replace("_", "-")), dcnzoo.cli.Door)
]


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


@pytest.mark.parametrize("name", DOORS)
def test_tool_has_a_door(name):
    command = [sys.executable, "-m", "dcnzoo", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: dcnzoo {name} [-h]"), "the tool's own help"
    options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", done.stdout, re.MULTILINE))
    assert options == set(dcnzoo.cli.options_of(command_of(name).script)), "what completion offers"
    assert_examples(name, done.stdout, options)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in DOORS])
def test_help_has_examples(name):
    text = CliRunner().invoke(dcnzoo.cli.commands, [name, "--help"]).output
    assert_examples(name, text, click_options(command_of(name)))


def click_options(command):
    options = {option for parameter in command.params for option in parameter.opts}
    members = command.commands.values() if isinstance(command, click.Group) else ()
    return options.union(*map(click_options, members))


def assert_examples(name, text, options):
    """There are some, of this command, and they use options that it has."""
    calls = [shlex.split(line, comments=True) for line in re.findall(r"^ +(dcnzoo .*)", text, re.MULTILINE)]
    assert calls, text
    for call in calls:
        assert call[1] == name
        assert {word for word in call if word.startswith("--")} <= options


def command_of(name):
    return dcnzoo.cli.commands.get_command(None, name)


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


def test_interruption_is_130(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dcnzoo", "fails"])
    monkeypatch.setattr(dcnzoo.cli.Commands, "get_command", lambda *_: fails(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as stopped:
        dcnzoo.cli.main()
    assert stopped.value.code == 130


def output_of(*arguments, encoding="utf-8", **kwargs):
    """The command in a terminal of another encoding."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "dcnzoo", *arguments]
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, timeout=120, **kwargs)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("arguments", [["doctor"], ["zoo", "list"], ["infer", "--help"]])
def test_terminals_without_unicode(arguments, encoding):
    done = output_of(*arguments, encoding=encoding, capture_output=True)
    assert done.returncode in (0, 1) if arguments == ["doctor"] else done.returncode == 0, done.stderr
    assert len(done.stdout.decode(encoding)) > 200 and b"Traceback" not in done.stderr


def test_errors_on_terminals_without_unicode():
    done = output_of(
        "train", "\udcff…Früchte-\N{GRAPES}.py", encoding="ascii", capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(r"found none at \udcff...Fr\xfcchte-\U0001f347.py")


def test_escape_sequences_in_names():
    done = output_of("train", "no\x1b[31mred\x07.py", capture_output=True, text=True)
    assert done.returncode == 1 and r"no\x1b[31mred\x07.py" in done.stderr
    assert not {"\x1b", "\x07"} & set(done.stderr)


PRINTS = {
    "print": "print('a line\\n' * 99)",
    "rich": "from rich.console import Console\nfor _ in range(9999): Console().print('a line')",
    "user_errors": "with errors.user_errors():\n    print('a line\\n' * 9999, flush=True)",
    "click": "from dcnzoo.cli import commands\ncommands(['--help'])",
}


@pytest.mark.parametrize("code", PRINTS.values(), ids=PRINTS)
def test_a_reader_that_ends_early(code):
    """Quiet, with the status that the shell gives to a program ended by SIGPIPE; not a crash, not success."""
    body = code.replace("\n", "\n    ")
    program = f"from dcnzoo.utils import errors\n@errors.command\ndef main():\n    {body}\nmain()"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_other_broken_pipes_are_errors(monkeypatch):
    """A server or a worker that is gone is not a reader of the output."""
    monkeypatch.setattr(sys, "argv", ["dcnzoo", "fails"])
    monkeypatch.setattr(dcnzoo.cli.Commands, "get_command", lambda *_: fails(UserError("server: gone")))
    with pytest.raises(SystemExit) as stopped:
        dcnzoo.cli.main()
    assert stopped.value.code == "error: server: gone"

    def broken():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        dcnzoo.utils.errors.command(broken)()


def test_bench_without_arguments_prints_help():
    done = output_of("bench", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: dcnzoo bench")


@pytest.fixture
def shell(tmp_path):
    """Runs bash where the command ``dcnzoo`` is this one."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = tmp_path / "dcnzoo"
    script.write_text(f"#!{sys.executable}\nfrom dcnzoo.cli import main\nmain()\n")
    script.chmod(0o755)
    root = str(Path(dcnzoo.cli.__file__).parents[2])
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": root}

    def run(text):
        done = subprocess.run(
            ["bash", "-c", text], env={**os.environ, **paths}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["zoo", "ver"], ["verify"]),
        (["zoo", "list", "--d"], ["--dcn"]),
        (["train", "mine.py", "--re"], ["--report", "--resume"]),
        (["explain", "--l"], ["--layer"]),
        (["export", "--cfg"], ["--cfg-options"]),
    ],
)
def test_bash_completes(shell, words, expected):
    typed = f"COMP_WORDS=(dcnzoo {' '.join(words)}); COMP_CWORD={len(words)}; _dcnzoo_completion dcnzoo"
    assert shell(f'eval "$(dcnzoo completion bash)"; {typed}; echo "${{COMPREPLY[@]}}"') == expected


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts(name):
    result = CliRunner().invoke(dcnzoo.cli.commands, ["completion", name])
    assert result.exit_code == 0 and "_DCNZOO_COMPLETE" in result.output
    assert CliRunner().invoke(dcnzoo.cli.commands, ["completion", "cmd"]).exit_code == 2


def test_console_script():
    """What ``pip install`` puts on the path is what ``python -m dcnzoo`` runs."""
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    if "dcnzoo" not in scripts:
        pytest.skip("dcnzoo was installed before it had a console script")
    module, _, name = scripts["dcnzoo"].partition(":")
    assert getattr(importlib.import_module(module), name) is dcnzoo.cli.main
