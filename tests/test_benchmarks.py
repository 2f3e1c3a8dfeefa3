"""The programs of benchmarks/ run. Their results are not tested here."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import data
from dcnzoo.data.check import check_coco
from dcnzoo.data.yolo import convert_yolo

from .processes import ROOT, python


@pytest.mark.slow
def test_operators(tmp_path):
    options = f"--cases tiny-64 --threads 1 --dtypes float32 --seconds 0.01 --out {tmp_path}"
    python("-m", "benchmarks.ops", "deform_conv2d", *options.split(), cwd=ROOT)
    (file,) = tmp_path.glob("*.json")
    rows = json.loads(file.read_text())["rows"]
    ours = [row for row in rows if row["contestant"] == "dcnzoo"]
    assert {row["mode"] for row in ours} == {"forward", "forward+backward"}
    assert all(row["seconds"] > 0 and row["extra"] >= 0 for row in ours)
    assert {"F.conv2d", "reference"} <= {row["contestant"] for row in rows}


def test_every_contestant_of_a_convolution_computes_the_same():
    """Those that are installed; a plain convolution does not."""
    from benchmarks.cases import CASES, contestants, passes

    (case,) = (case for case in CASES if (case.operator, case.name) == ("deform_conv2d", "tiny-64"))
    sample = case.sample(torch.float32).leaves()
    found = contestants(case.operator)
    names = ("dcnzoo", "dcnzoo channels_last", "reference", "F.conv2d")
    ours, *same, plain = (passes(found[name](sample), sample.given, "forward+backward")() for name in names)
    for other in same:
        torch.testing.assert_close(other, ours, rtol=1e-3, atol=1e-3)
    assert plain[0].shape == ours[0].shape and not torch.allclose(plain[0], ours[0], atol=0.1)


@pytest.mark.slow
def test_models():
    options = "startup --rounds 1 --threads 1"
    assert "import dcnzoo.ops" in python("-m", "benchmarks.models", *options.split(), cwd=ROOT).stdout


@pytest.fixture(scope="module")
def study_rows():
    """Results of three seeds; the gain of v2 over plain differs between them, the one over v1 is constant."""
    from benchmarks.study.training import PLAN

    rows = []
    for run in PLAN:
        if run.setting == "shapes" and (run.stage == "search" or run.seed < 3):
            ap = {"v2": 0.8, "v1": 0.7}.get(run.arm, 0.7 + 0.01 * run.seed)
            row = {**run.columns, "rate": run.rate or 0.003, "box_ap": ap + 0.1, "mask_ap": ap - 0.1}
            splits = {4: "val", run.epochs: "val" if run.stage == "search" else "test"}
            rows += [
                {name: str(value) for name, value in {**row, "epoch": epoch, "split": split}.items()}
                for epoch, split in splits.items()
            ]
    return rows


def test_study_continues_with_the_first_incomplete_training(study_rows):
    from benchmarks.study.training import PLAN, pending

    assert len(study_rows) == 2 * (18 + 3 * 6)
    assert pending(PLAN, study_rows) == list(PLAN[18 + 3 * 6 :])
    assert pending(PLAN, study_rows[:-1])[0] == PLAN[18 + 3 * 6 - 1]  # the last training has no test result


def test_study_compares_complete_seeds_only(study_rows):
    from benchmarks.study import page
    from benchmarks.study.training import ARMS

    for rows, seeds in ((study_rows, 3), (study_rows[:-1], 2)):
        gains = page.gains(page.complete(rows, "shapes", tuple(ARMS)))
        assert gains["plain"] == pytest.approx([0.1, 0.09, 0.08][:seeds])
        assert gains["v1"] == pytest.approx([0.1] * seeds)


def test_study_verdict_is_of_the_simultaneous_interval():
    """Five differences with mean .02: Student's t is 4.604 for 99% and 4 degrees of freedom."""
    from benchmarks.study import page

    for spread, expected in ((0.009, "gain"), (0.0105, "undecided")):
        differences = [0.02 + spread * step for step in (-1.2649, -0.6325, 0, 0.6325, 1.2649)]
        assert page.interval(differences, 5)[0] == pytest.approx(0.02 - 4.604 * spread / 5**0.5, abs=1e-4)
        assert page.verdict(differences) == expected
    assert page.verdict([-0.02, -0.021, -0.019]) == "loss"
    assert page.verdict([0.001, -0.001, 0.0005]) == "no difference"


@pytest.mark.parametrize(
    ("best", "edge"), [(0.000375, True), (0.00075, False), (0.003, False), (0.006, True)]
)
def test_study_refuses_a_best_rate_at_the_edge_of_the_grid(best, edge):
    """Of either arm, since both are tuned alike."""
    from benchmarks.study.training import TIMED, TIMED_RATES, Run, best_rate

    rows = []
    for arm, best_of_arm in (("v2", 0.0015), ("plain", best)):
        for rate in TIMED_RATES:
            row = {**Run("search", TIMED, arm, 9100).columns, "rate": rate, "split": "val", "mask_ap": ""}
            row["box_ap"] = 0.5 - abs(rate - best_of_arm)
            rows.append({name: str(value) for name, value in row.items()})
    assert best_rate(rows[:-1], "v2", TIMED) is None
    with pytest.raises(RuntimeError, match=str(best)) if edge else nullcontext():
        assert best_rate(rows, "v2", TIMED) == 0.0015
        assert best_rate(rows, "plain", TIMED) == best


@pytest.mark.parametrize(("budget", "epochs"), [(29, 3), (31, 3), (34, 3), (36, 4), (1, 1), (None, 1000)])
def test_study_ends_after_the_epoch_that_is_nearest_to_its_cpu_time(budget, epochs, monkeypatch):
    """Epochs of ten seconds, after which five seconds of validation do not count."""
    from benchmarks.study.training import RecordHook

    times = iter(time for epoch in range(1000) for time in (15 * epoch, 15 * epoch + 10))
    monkeypatch.setattr("time.process_time", lambda: next(times))
    hook, loop = RecordHook({}, budget), SimpleNamespace(_max_epochs=1000)
    for epoch in range(1000):
        if epoch == loop._max_epochs:
            break
        runner = SimpleNamespace(train_loop=loop, epoch=epoch)
        hook.before_train_epoch(runner)
        hook.after_train_epoch(runner)
    assert loop._max_epochs == epochs


def test_study_trains_for_a_cpu_time(tmp_path, monkeypatch, set_threads):
    """The first epoch exceeds the budget. The training fails unless it tests the average of its weights."""
    from benchmarks.study import training

    (tmp_path / "images").mkdir()
    categories = [{"id": i, "name": name} for i, name in enumerate(("WBC", "RBC", "Platelets"), 1)]
    for split, count in (("train", 8), ("val", 1), ("test", 2)):
        images = [{"id": i, "file_name": f"{split}{i}.png", "width": 64, "height": 48} for i in range(count)]
        for image in images:
            Image.effect_noise((64, 48), 50).convert("RGB").save(tmp_path / "images" / image["file_name"])
        boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [9, 9, 20, 20]} for i in range(count)]
        boxes = [{**box, "area": 400, "iscrowd": 0} for box in boxes]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    rows = []
    monkeypatch.setattr(training, "append", rows.append)
    monkeypatch.setattr(training, "BUDGET", 0.1)
    training.train(training.Run("main", training.TIMED, "v2", 3), 1e-3, tmp_path / "runs", tmp_path, {})
    assert [(row["split"], row["epoch"], row["model_seed"]) for row in rows] == [
        ("val", 1, 3),
        ("test", 1, 3),
    ]
    assert all(0.1 < row["cpu_seconds"] < 100 for row in rows)


def test_data_set_is_valid(tmp_path):
    data.make(tmp_path, 3)
    file, images = tmp_path / "coco/annotations/instances_train.json", tmp_path / "coco/train"
    report = check_coco(file, images)
    assert not report.problems and report.counts["images"] == 3
    converted = convert_yolo(tmp_path / "yolo")
    assert not converted.problems and len(converted.content()["annotations"]) == report.counts["annotations"]
