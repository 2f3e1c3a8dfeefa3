"""The command ``dcnzoo``: its commands are the modules of a folder, and errors are one line."""

import pkgutil
import runpy
import sys

import click
import pytest

import dcnzoo.cli
from dcnzoo.cli import _command, _options
from dcnzoo.utils.errors import JointError, UserError
from tests.helpers.commands import every_command, invoke
from tests.helpers.processes import ROOT, python, run_code

MODULES = sorted(m.name for m in pkgutil.iter_modules(dcnzoo.cli.__path__) if m.name[0] != "_")


@pytest.mark.parametrize("context", [*every_command()], ids=lambda context: context.info_name)
def test_help_is_short(context):
    most = 60 if context.info_name.split()[-1] in ("train", "test", "infer", "export") else 45
    context.max_content_width = context.terminal_width = 80
    assert len(context.command.get_help(context).splitlines()) <= most


def test_help_is_light():
    """Every command's help works without the slow packages."""
    heavy = ("torch", "numpy", "mmengine", "mmdet", "requests", "matplotlib")
    code = f"""
import sys
for name in {heavy}:
    sys.modules[name] = None
from click.testing import CliRunner
from dcnzoo.cli import commands
for name in {MODULES}:
    assert CliRunner().invoke(commands, [name, "--help"]).exit_code == 0, name
assert CliRunner().invoke(commands, ["--help"]).exit_code == 0
"""
    run_code(code)


def test_mistakes_are_found_before_slow_imports(tmp_path):
    (tmp_path / "a.png").touch()
    lines = """infer NAME none.png | none.png
        infer NAME a.png --checkpoint none.png | none.png
        train NAME --resume none.pth | none.pth
        test mask-rcnn_r14-mdconv_fpn_8e_shape | closest names: mask-rcnn_r14-mdconv_fpn_8e_shapes
        zoo lst | 'list'
        trian none | 'train'"""
    code = f"""
import sys
for name in ("torch", "mmcv", "mmdet.registry"):
    sys.modules[name] = None
from dcnzoo.cli import commands
from click.testing import CliRunner
for row in {lines!r}.replace("NAME", "mask-rcnn_r14-mdconv_fpn_8e_shapes").splitlines():
    line, word = row.split(" | ")
    result = CliRunner().invoke(commands, line.split())
    *_, error = result.output.splitlines()
    assert result.exit_code in (1, 2) and error.lower().startswith("error: ") and word in error, result.output
import dcnzoo, pytest
calls = ((["mask-rcnn"], "closest"), ([], "missing"))
for arguments, word in calls:
    with pytest.raises(Exception, match=word):
        dcnzoo.load(*arguments)
"""
    python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))


SHELLS = [
    path for path in (ROOT / "tools").rglob("*.py") if "from dcnzoo.cli import main" in path.read_text()
]


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.stem)
def test_tools_are_commands(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith("Usage: dcnzoo ")


@click.command(cls=_command.Command)
@click.argument("files", nargs=-1)
@click.option("--cfg-options", cls=_command.Several, accepts=lambda word: "=" in word)
@click.option("--out")
def parser(**values):
    return values


@pytest.mark.parametrize(
    ("line", "files", "options"),
    [
        ("a --cfg-options b=1 c=2 --out d", "a", "b=1 c=2"),
        ("--cfg-options b=1 --cfg-options=c=2 d=3 a", "a", "b=1 c=2 d=3"),
        ("--cfg-options=b=1 a c=2", "a c=2", "b=1"),
        ("--cfg-options b=1 -- a c=2", "a c=2", "b=1"),
        ("a c=2 --out b=1 d=2", "a c=2 d=2", ""),
        ("--cfg-options b a", "a", "b"),
    ],
)
def test_settings_of_configs_as_mmdetection_writes_them(line, files, options):
    values = parser.main(line.split(), standalone_mode=False)
    assert (values["files"], values["cfg_options"]) == (tuple(files.split()), tuple(options.split()))


@click.command(cls=_command.Command)
@click.argument("file", required=False)
@_options.shape("Size.")
def sizes(**values):
    return values


@pytest.mark.parametrize(
    ("line", "shape", "file"),
    [
        ("--shape 240 a", (240, 240), "a"),
        ("--shape 240 320 a", (240, 320), "a"),
        ("a --shape=240 320", (240, 320), "a"),
        ("a", None, "a"),
        ("--shape 1 --shape 2", (1, 2), None),
    ],
)
def test_one_or_two_sides_of_a_shape(line, shape, file):
    assert sizes.main(line.split(), standalone_mode=False) == {"shape": shape, "file": file}


def test_three_sides_of_a_shape():
    with pytest.raises(click.BadParameter, match="expected HEIGHT WIDTH, got 1 2 3"):
        sizes.main(["--shape", "1", "2", "3"], standalone_mode=False)


# Output


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
        # a module that a config imports and no extra contains
        (ModuleNotFoundError("No module named 'mine'", name="mine"), "error: No module named 'mine'"),
        (OSError(28, "No space left", "x.pth"), "error: [Errno 28] No space left: 'x.pth'"),
        (PermissionError(13, "Permission denied", "x"), "error: [Errno 13] Permission denied: 'x'"),
        (KeyboardInterrupt(), 130),
    ],
)
def test_mistakes_get_one_line(error, text, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dcnzoo", "fails"])
    monkeypatch.setattr(dcnzoo.cli.Commands, "get_command", lambda *_: fails(error))
    with pytest.raises(SystemExit) as stopped:
        dcnzoo.cli.main()
    assert stopped.value.code == text
    if text != 130:
        monkeypatch.setenv("DCNZOO_TRACEBACK", "1")
        with pytest.raises(type(error)):
            dcnzoo.cli.main()


@pytest.mark.parametrize(("rank", "text"), [("0", "error: --out: a\nerror: b"), ("1", 1)])
def test_an_error_of_all_processes_is_shown_once(monkeypatch, rank, text):
    """By the first process of each machine, with the words of the command line."""

    @click.command(cls=_command.Command)
    @click.option("--out")
    def command(out):
        raise JointError("out: a", "b")

    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(sys, "argv", ["dcnzoo", "fails"])
    monkeypatch.setattr(dcnzoo.cli.Commands, "get_command", lambda *_: command)
    with pytest.raises(SystemExit) as stopped:
        dcnzoo.cli.main()
    assert stopped.value.code == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("data/my pics/", "data/my pics/"), ("x (old)/y", "x (old)/y"), ("'my exp'", "my exp"), (" 3 ", 3),
        ("1, 2", [1, 2]), ("[(1, 2), [ a, b c ], -1e-3]", [(1, 2), ["a", "b c"], -1e-3]), ("()", ()),
        ("None", None), ("true", True), ("epoch_{}.pth", "epoch_{}.pth"),
        ("{epoch:02d}, 1", ["{epoch:02d}", 1]),
    ],
)  # fmt: skip
def test_values_of_settings(text, value):
    """The option reads mmengine's syntax and keeps the spaces in texts."""

    @click.command()
    @_options.cfg_options
    def command(cfg_options):
        assert cfg_options == {"a.b": value} and type(cfg_options["a.b"]) is type(value)

    command.main(["--cfg-options", f"a.b={text}"], standalone_mode=False)


@pytest.mark.parametrize("name", ["no_module", "no.module"])
def test_a_module_that_does_not_exist(name):
    """As Python says it, without dcnzoo's own traceback; an error inside a program has its traceback."""
    status, output = invoke("run", "-m", name)
    assert status == 1 and f"No module named {name}" in output and "Traceback" not in output
