"""Files that earlier versions have written are read.

``versions/REVISION.tar.xz`` has, made by the programs of that revision: a config, its work directory after
two of three epochs, an exported file, detections in each form that it had, and the data, four pictures.
The detector is tiny and hardly trained: its scores are low.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmdet")

import dcnzoo
from dcnzoo.detect.detections import Detections
from dcnzoo.openmmlab.hooks.history import History

from .commands import run

VERSIONS = sorted(Path(__file__).with_name("versions").glob("*.tar.xz"))


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name.partition(".")[0])
def folder(request, tmp_path, monkeypatch) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_training_resumes(folder):
    # With AVX2, oneDNN 3.12 writes beyond its memory: in the backward of a 1×1 convolution of stride 2 in
    # channels-last order, with fewer than 8 channels.
    run("train", "tiny.py", "--work-dir", "tiny", "--resume", "--no-channels-last")
    assert (folder / "tiny/epoch_3.pth").exists()
    assert "3 of 3 epochs are done" in run("train", "tiny.py", "--work-dir", "tiny", "--resume")
    assert [*History.read(folder / "tiny").validation] == [1, 2, 3]


@pytest.mark.parametrize("model", ["tiny", "tiny/epoch_2.pth", "model.onnx"])
def test_detections(folder, model):
    """``detections.json`` is of the best checkpoint, at another size than the exported file."""
    detector = dcnzoo.load(model, score_threshold=0)
    assert [*detector.names.values()] == ["square", "circle"]
    results = [*detector([f"data/images/{i}.png" for i in range(4)])]
    assert [len(result) for result in results] == [4, 4, 4, 4]
    if model == "tiny":
        rows = json.loads((folder / "detections/detections.json").read_text())["annotations"]
        scores = np.concatenate([result.scores for result in results])
        np.testing.assert_allclose(scores, [row["score"] for row in rows], rtol=1e-5)


def test_rows(folder):
    """The same command has nothing left to do, and the rows are read."""
    files = [*folder.glob("rows/*.jsonl")]
    if not files:
        pytest.skip("this version wrote no rows")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [len(Detections.from_row(row)) for row in rows] == [4, 4, 4, 4]
    state = folder / "rows/results.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "folder": str(folder)}))
    run("infer", "tiny", "data/images", "--out", "rows", "--format", "jsonl", "--score-threshold", "0")
    assert [*folder.glob("rows/*.jsonl")] == files
