"""The documentation: links resolve, code runs and commands exist."""

import os
import re
import runpy
import shlex
from pathlib import Path

import click
import pytest

from dcnzoo.cli import commands
from tests.helpers.processes import ROOT

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "configs/*/README.md")
    for path in ROOT.glob(pattern)
    if "_build" not in path.parts
)


if not PAGES:
    pytest.skip("needs the repository", allow_module_level=True)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere_and_code_compiles(path):
    """Sphinx checks the headings of links."""
    for block in blocks(path, "python"):
        compile(block, name_of(path), "exec")
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for file in re.findall(r"\]\(([^)\s#]+)", text):
        assert "://" in file or (path.parent / file).exists(), f"{file}: no such file"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_exist_and_have_these_options(path):
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE).replace("\n", " ")
    inline = re.findall(r"`((?:\w+=\S* )*dcnzoo [a-z][^`:]*)`", prose)
    text = "\n".join([*blocks(path, "bash"), *inline]).replace("\\\n", " ")
    for line in re.findall(r"^(?:\w+=\S* )*dcnzoo ([^#|>\n]+)", text, re.MULTILINE):
        command, words = commands, shlex.split(line)
        while isinstance(command, click.Group) and not words[0].startswith("-"):
            command = command.get_command(click.Context(command), words.pop(0))
            assert command, f"dcnzoo {line}: no such command"
        options = {name for parameter in command.params for name in (*parameter.opts, "--help")}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= options or command.name == "run", f"dcnzoo {line}: no such option"


@pytest.mark.slow
def test_tutorial(monkeypatch):
    """Every cell runs; the detector has an AP."""
    for package in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run at the same time
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the program changes it
    cells = runpy.run_path(str(ROOT / "docs/run_tutorial.py"))["execute"]()["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    text = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    ap = dict(re.findall(r"(box|mask) AP ([\d.]+)", text))
    assert float(ap["mask"]) > 0.05 and float(ap["box"]) > 0.05 and "Warning" not in text
