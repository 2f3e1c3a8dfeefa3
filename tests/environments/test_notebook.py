"""Notebooks outside the clone, with dcnzoo from a wheel: ``nox -s clients``."""

import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.helpers.formats import fruits, write_yolo
from tests.helpers.processes import ROOT

if "NOTEBOOK" not in os.environ:
    pytest.skip("nox -s clients installs dcnzoo from a wheel", allow_module_level=True)

import nbformat
from nbclient import NotebookClient

OUTSIDE = f"import dcnzoo\nassert not dcnzoo.__file__.startswith({str(ROOT / 'dcnzoo')!r}), dcnzoo.__file__"
# the interrupt of the notebook's stop button, after the first epoch
STOPPED = """
import os, pathlib, signal, threading, time
def stop():
    while not pathlib.Path("work_dirs/fruits/epoch_1.pth").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=stop, daemon=True).start()
"""


def run(cells: list, folder: Path) -> list[str]:
    """Execute cells in a new kernel; return what they print."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(OUTSIDE), *cells])
    client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(folder)}})
    outputs = [output for cell in client.execute().cells for output in cell.get("outputs", ())]
    return ["".join(each["text"]) for each in outputs if each["output_type"] == "stream"]


def test_the_page_on_ones_own_pictures(tmp_path, monkeypatch):
    """Train, stop, continue, detect, export, report."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    write_yolo(tmp_path / "yolo", fruits(tmp_path / "drawn"))
    with zipfile.ZipFile(tmp_path / "fruits.zip", "w") as archive:
        for path in (tmp_path / "yolo").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "yolo"))
    picture = next(path for path in (tmp_path / "yolo").rglob("*") if path.suffix in (".jpg", ".png"))
    shutil.copy(picture, tmp_path / "picture.jpg")
    page = (ROOT / "docs/train_your_data.md").read_text(encoding="utf-8")
    code = [
        text.replace("epochs=20", "epochs=3")
        for text in re.findall(r"clients -->\n```python\n(.*?)```", page, re.S)
    ]
    cells = [nbformat.v4.new_code_cell(text) for text in code]
    cells[0].source = STOPPED + cells[0].source
    cells[0].metadata["tags"] = ["raises-exception"]
    text = "".join(run(cells, tmp_path))
    work = tmp_path / "work_dirs/fruits"
    assert "3/3" in text and (work / "epoch_3.pth").exists() and (work / "report.html").exists()
    epochs = re.findall(r"^ +(\d)/3 ", text, re.MULTILINE)
    assert epochs == sorted(set(epochs)), "each epoch once"
    assert (tmp_path / "fruits.onnx").exists() and "Detections(" in text
