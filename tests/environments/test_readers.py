"""Other programs read what ``dcnzoo infer`` writes: ``nox -s readers``."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcnzoo.cli.infer import command
from dcnzoo.detect.detections import Detections

from ..commands import run
from ..detect.test_rows import Squares
from ..test_pages import blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures in two folders, and the files of detections of them."""
    folder = tmp_path_factory.mktemp("readers")
    for name, side in (("a/0", 5), ("b/0", 3), ("b/1", 0)):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"photos/{name}.png"), np.full((9, 12, 3), side, np.uint8))
    cv2.imwrite(str(folder / "photos/c.png"), np.full((9, 12, 3), 4, np.uint8))
    os.rename(folder / "photos/c.png", os.fsencode(folder / "photos/a") + b"/\xff.png")
    (folder / "photos/b/damaged.png").write_text("no picture")
    (folder / "m.onnx").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcnzoo.load", lambda *args, **options: Squares())
        patch.chdir(folder)
        pictures = ["photos/a/0.png", "photos/b/0.png", "photos/b/1.png"]
        for words in (
            ["photos", "--format", "jsonl", "--out", "jsonl"],
            ["photos", "--format", "parquet", "--out", "parquet"],
            [*pictures, "--json", "--out", "masks"],
            [*pictures, "--json", "--txt", "--polygons", "--out", "polygons"],
        ):
            result = CliRunner().invoke(command, ["m.onnx", *words])
            assert isinstance(result.exception, SystemExit | None), result.exception
    return folder


def test_pycocotools(folder):
    """As ground truth and as detections, which agree with themselves."""
    for name in ("masks", "polygons"):
        file = folder / name / "detections.json"
        truth = COCO(str(file))
        assert {each["file_name"] for each in truth.imgs.values()} == {"a/0.png", "b/0.png", "b/1.png"}
        areas = [truth.annToMask(each).sum() for each in truth.anns.values()]
        assert areas == [25, 9] == [each["area"] for each in truth.anns.values()]
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(truth, truth.loadRes(truth.dataset["annotations"]), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == 1


def test_own_check(folder):
    for name in ("masks", "polygons"):
        output = run("data", "check", folder / name / "detections.json", "--images", folder / "photos")
        assert "3 images, 2 annotations, 2 categories" in output and "no problems" in output


def test_datumaro(folder):
    datumaro = pytest.importorskip("datumaro")
    for name in ("masks", "polygons"):
        out = folder / f"datumaro-{name}"
        shutil.copytree(folder / "photos", out / "images")  # where its reader expects them
        (out / "annotations").mkdir()
        content = (folder / name / "detections.json").read_bytes()
        (out / "annotations/instances_val.json").write_bytes(content)
        dataset = datumaro.Dataset.import_from(str(out), "coco_instances")
        annotations = {item.id: len({each.id for each in item.annotations}) for item in dataset}
        assert annotations == {"a/0": 1, "b/0": 1, "b/1": 0}


def test_supervision(folder):
    supervision = pytest.importorskip("supervision")
    file = str(folder / "polygons/detections.json")
    dataset = supervision.DetectionDataset.from_coco(str(folder / "photos"), file, force_masks=True)
    assert dataset.classes == list(Squares.classes)
    found = {path.rpartition("photos/")[2]: detections for path, _, detections in dataset}
    assert [len(found[name]) for name in ("a/0.png", "b/0.png", "b/1.png")] == [1, 1, 0]
    np.testing.assert_allclose(found["a/0.png"].xyxy, [[0, 0, 5, 5]])


def test_label_studio(folder, tmp_path):
    converter = pytest.importorskip("label_studio_sdk.converter.imports.coco")
    converter.convert_coco_to_ls(
        input_file=str(folder / "polygons/detections.json"),
        out_file=str(tmp_path / "tasks.json"),
        out_type="predictions",
    )
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert len(tasks) >= 2 and all(task["predictions"] for task in tasks if "1.png" not in str(task["data"]))


def test_the_block_of_the_page(folder, monkeypatch):
    """docs/scale.md reads rows with pandas."""
    pytest.importorskip("pandas")
    monkeypatch.chdir(folder)
    (folder / "detections").symlink_to("jsonl")
    (block,) = [block for block in blocks("docs/scale.md") if "pandas" in block.code]
    variables = {}
    exec(compile(block.code, "docs/scale.md", "exec"), variables)
    assert variables["result"].names == ["square"] and variables["result"].masks.sum() == 25


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows(folder, kind):
    """The same columns in all, also of names that are not UTF-8 and of a damaged picture."""
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    duckdb = pytest.importorskip("duckdb")
    import pyarrow.json
    import pyarrow.parquet  # noqa: F401

    (file,) = (folder / kind).glob(f"part-*.{kind}")
    if kind == "jsonl":
        tables = [pandas.read_json(file, lines=True), arrow.json.read_json(file).to_pandas()]
    else:
        tables = [pandas.read_parquet(file), arrow.parquet.read_table(file).to_pandas()]
    function = "read_json" if kind == "jsonl" else "read_parquet"
    tables.append(duckdb.sql(f"SELECT * FROM {function}('{file}')").df())
    for table in tables:
        assert [*table.columns] == [
            *("path", "width", "height", "boxes", "scores", "labels", "names", "masks", "error")
        ]
        rows = {row["path"]: row for _, row in table.iterrows()}
        assert {*rows} >= {"photos/a/0.png", "photos/a/\\udcff.png", "photos/b/damaged.png"}
        assert "damaged" in rows["photos/b/damaged.png"]["error"]
        result = Detections.from_row(rows["photos/a/0.png"], Squares.classes)
        assert result.names == ["square"] and result.masks.sum() == 25
