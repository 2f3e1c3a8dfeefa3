"""The report: reading logs, the figures, and a page without external files."""

import base64
import dataclasses
import io
import json
import re
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools.mask import encode

import dcnzoo
import dcnzoo.openmmlab.hooks
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.detect.crops import Crops
from dcnzoo.export import Detections
from dcnzoo.openmmlab.history import BEGAN, History
from dcnzoo.report.evaluation import ClassResults, evaluate, most_errors
from dcnzoo.report.explain import Box, points_of, render_explanation
from dcnzoo.report.explain_detector import explain
from dcnzoo.report.report import render_runs, summary, write_report
from dcnzoo.report.runs import TrainedRun
from dcnzoo.report.sampling import Frame, SamplingField
from dcnzoo.report.sections import _series, class_table, show_errors, show_sampling
from dcnzoo.report.validation import Prediction, ValidationRunner, load_detectors, pick_images
from dcnzoo.utils.errors import UserError
from tests.helpers.demo import DEFORMABLE
from tests.report.conftest import write_log


def test_history_of_a_resumed_run(tmp_path):
    """Killed in epoch 3, resumed after epoch 1: repeated entries are replaced, later ones dropped."""
    write_log(
        tmp_path,
        [(2, 1, 5.0), (4, 1, 4.0), (1, 0.1), (6, 2, 3.0), (8, 2, 2.5), (2, 0.2), (10, 3, 2.0)],
        [{BEGAN: 1, "step": 4}, (6, 2, 3.5)],
    )
    history = History.read(tmp_path)
    assert {step: entry["loss"] for step, entry in history.training.items()} == {2: 5.0, 4: 4.0, 6: 3.5}
    assert history.validation == {1: {"coco/bbox_mAP": 0.1, "coco/bbox_mAP_l": -1.0}}
    assert history.iteration == 6
    for start, numbers in ((0, {2: 0.5, 6: 1.0, 8: 2.0}), (1, {6: 1.5})):
        with (tmp_path / f"2026_{start}" / "vis_data" / "scalars.json").open("a") as file:
            file.writelines(f'\n{{"offsets/mean_abs/a": {n}, "step": {i}}}' for i, n in numbers.items())
    offsets = {2: {"mean_abs/a": 0.5}, 6: {"mean_abs/a": 1.5}}
    assert History.read(tmp_path) == History(history.training, history.validation, offsets)
    assert History.read(tmp_path / "nowhere") == History({}, {}, {})


def charts(html):
    return [
        base64.b64decode(each).decode() for each in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)
    ]


def test_report_of_a_run(make_run, monkeypatch):
    folder = make_run()
    log = folder / "2026_0" / "2026_0.log"
    log.write_text("x\nSystem environment:\n    GCC: none <5>\n" + "-" * 60 + "\nConfig:\n")
    for i in (2, 4):
        offsets = {f"offsets/mean_abs/layer{n}": abs(n - 4) + i for n in range(9)}
        with log.with_name("vis_data").joinpath("scalars.json").open("a") as file:
            file.write(f"\n{json.dumps({**offsets, 'step': i})}")
    out = write_report([folder])
    assert out == folder / "report.html" and not list(folder.glob(".*partial"))
    html = out.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#|file:)|url\(', html), "self-contained"
    assert len(html) < 3_000_000
    for figure in ("box AP</dt><dd>0.250", "s / iteration</dt><dd>0.250", "parameters</dt><dd>585,806"):
        assert figure in html
    assert "<td>0.125</td><td>–</td>" in html
    assert html.count('class="pictures small"') == 1, "points of each layer"
    assert html.count("<figcaption>ground truth: ") == 5 + 3
    assert "<img" in html and not re.search(r'<img(?![^>]* alt="\w)', html)
    sizes = re.findall(r"font-size: ([\d.]+)px", "".join(charts(html)))
    assert min(map(float, sizes)) >= 9, "points, 12 pixels of the page"
    headings = re.findall(r"<h2 id=.*?>(.*?)</h2>", html)
    assert headings == [
        "Detections", "Most errors", "Errors by class", "Sampling positions", "Learning curves",
        "Offsets during training", "All validations",
    ]  # fmt: skip
    assert "all 6 validation images" in html and '<th scope="col">mask AP</th>' in html
    assert html.count("<details") == 2, "the learning rate and the validations"
    drawn = {layer for chart in charts(html) for layer in re.findall(r">(layer\d)<", chart)}
    assert drawn == {f"layer{n}" for n in (0, 1, 2, 6, 7, 8)}, "the layers with the largest final offsets"
    assert any(">epoch<" in chart for chart in charts(html)), "not iterations"

    moved = folder.rename(folder.with_name("moved"))
    (moved / "epoch_2.pth").unlink()
    with pytest.raises(UserError, match=r"checkpoint: .*epoch_2\.pth"):
        write_report([moved])
    assert [file.name for file in moved.glob("*.html")] == ["report.html"]


@pytest.mark.parametrize(("name", "ap"), [("best_coco_bbox_mAP_epoch_1", 0.125), ("epoch_2", 0.25)])
def test_figures_and_pictures_are_of_one_checkpoint(make_run, name, ap):
    """The first epoch is the best one, or the last is chosen: the metrics are those of the weights."""
    folder = make_run()
    weights = folder / f"{name}.pth"
    if not weights.exists():
        shutil.copy(folder / "epoch_2.pth", weights)
    run = TrainedRun.read(folder, checkpoint=weights)
    assert run.metrics["coco/bbox_mAP"] == ap and f"epoch {run.step}" in run.described
    html = render_runs([run], {})
    assert f"box AP</dt><dd>{ap:.3f}" in html and f"box AP {ap:.3f}" in html and run.described in html


@pytest.mark.parametrize(
    ("name", "step", "text"),
    [
        ("epoch_3.pth", 3, "last, epoch 3"),
        ("epoch_1.pth", 1, "epoch 1"),
        ("best_coco_bbox_mAP_epoch_1.pth", 1, "best, epoch 1"),
        ("epoch_2.pth", 2, "epoch 2; metrics of epoch 3"),  # it was not validated
        ("own.pth", None, "own.pth; metrics of epoch 3"),
        (None, None, "no checkpoint"),
    ],
)
def test_the_checkpoint_in_words(tmp_path, name, step, text):
    assert run_of(tmp_path, {1: 0.1, 3: 0.3}, name, step).described == text


def run_of(folder, validations, name=None, step=None, label="run"):
    """Return a training of epochs with these box APs."""
    rows = {epoch: {"coco/bbox_mAP": ap} for epoch, ap in validations.items()}
    cfg = Config(dict(train_cfg=dict(by_epoch=True)))
    return TrainedRun(label, folder, cfg, History({2: {}}, rows, {}), name and folder / name, step)


def test_curves_are_of_the_validations_that_all_seeds_have(tmp_path):
    """A resumed training may lack one."""
    runs = [run_of(tmp_path, {1: 0.1, 2: 0.2, 4: 0.4}), run_of(tmp_path, {2: 0.3, 4: 0.5, 5: 0.6})]
    steps, values = _series(runs, "validation", "coco/bbox_mAP")["run"]
    assert steps.tolist() == [2, 4] and values.tolist() == [[0.2, 0.4], [0.3, 0.5]]


@pytest.mark.parametrize(
    ("images", "text"),
    [(6, "in all 6 validation images. "), (2, "in the first 2 of 6 validation images, so")],
)
def test_the_page_says_on_how_many_images_errors_are_counted(images, text):
    detector = SimpleNamespace(classes=("a",), dataset=range(6), threshold=0.5)
    counts, curve = np.array([1]), np.full((1, 101), 0.5)
    result = ClassResults(counts, curve[:, 0], curve, np.eye(2, dtype=int), np.zeros(images, int))
    assert text in show_errors({"a": detector}, {"a": result}).text


def test_pictures_with_three_objects_come_first():
    images = [(f"{number}.png", 9, 9, [()] * objects) for number, objects in enumerate((2, 3, 0, 5))]
    assert pick_images(images, 3) == [1, 3, 0]


def test_runs_beside_each_other(make_run):
    start = [(2, 1, 5.0), (4, 1, 4.0)]
    folders = [make_run(f"v2-{i}", [[*start, (1, ap)]]) for i, ap in enumerate((0.2, 0.4))]
    off = make_run("off", [[*start, (1, 0.1)]], **{"model.backbone.dcn": None})
    (off / "last_checkpoint").unlink()
    (off / "config.py").rename(off / "2026_0/vis_data/config.py")
    runs = [TrainedRun.read(off), *(TrainedRun.read(folder, "v2") for folder in folders)]
    detectors = load_detectors(runs)
    assert list(detectors) == ["v2"]
    head, first, second = summary(runs, detectors, "arm")
    assert head == ["arm", "box AP", "s / iteration", "parameters"]
    assert first == ["off", "0.100", "0.250", "–"]
    assert second == ["v2", "0.300 ± 0.141", "0.250", "585,806"]
    html = render_runs(runs, detectors, images=1)
    assert "<dd>0.100 → 0.300 ± 0.141</dd>" in html and "off → v2</dd>" in html


def test_folders_of_one_name_are_two_settings(make_run, tmp_path):
    folder = make_run("fruits")
    other = shutil.copytree(folder, tmp_path / "later" / "fruits")
    html = write_report([folder, other], images=0, evaluated=0).read_text(encoding="utf-8")
    assert f"{folder} → {other}</dd>" in html and "±" not in html


def test_trainings_with_different_validation_images(make_run, tmp_path):
    """A row of pictures would show different ones."""
    make_shapes(tmp_path / "other", ShapesSpec(train=2, val=4))
    settings = {"val_dataloader.dataset.data_root": f"{tmp_path}/other/"}
    runs = [TrainedRun.read(make_run("a")), TrainedRun.read(make_run("b", **settings))]
    html = render_runs(runs, load_detectors(runs), images=1)
    assert "different validation images" in html and "Errors by class" not in html and "<img" in html


def test_trainings_with_corrected_labels(make_run, data, tmp_path):
    """The files have the same names: the objects differ, or the pictures do."""
    other = shutil.copytree(data, tmp_path / "other")
    content = json.loads((other / "annotations/val.json").read_text())
    content["annotations"][0]["category_id"] = 3 - content["annotations"][0]["category_id"] % 2
    (other / "annotations/val.json").write_text(json.dumps(content))
    settings = {"val_dataloader.dataset.data_root": f"{other}/"}
    runs = [TrainedRun.read(make_run("a")), TrainedRun.read(make_run("b", **settings))]
    assert "different validation images" in render_runs(runs, load_detectors(runs), images=1)


def test_weights_that_are_not_finite(make_run):
    """A page without detections and without a message would look like that of a model that learnt nothing."""
    run = TrainedRun.read(make_run())
    state = torch.load(run.checkpoint, weights_only=True)
    state["state_dict"]["backbone.layer1.0.conv2.weight"][:] = 1e38
    torch.save(state, run.checkpoint)
    html = render_runs([run], load_detectors([run]))
    assert "expected finite" in html and ">Learning curves</h2>" in html


def test_an_object_without_a_mask_beside_polygons(make_run, tmp_path, data):
    """A detector of boxes does not read the masks."""
    other = shutil.copytree(data, tmp_path / "boxes")
    content = json.loads((other / "annotations/val.json").read_text())
    image = content["annotations"][0]["image_id"]
    number = sum(each["image_id"] == image for each in content["annotations"])
    del content["annotations"][0]["segmentation"]
    (other / "annotations/val.json").write_text(json.dumps(content))
    pipeline = Config.fromfile(DEFORMABLE).val_dataloader.dataset.pipeline
    settings = {
        "data_root": f"{other}/",
        "pipeline": [
            {**each, "with_mask": False} if each.type == "LoadAnnotations" else each for each in pipeline
        ],
    }
    folder = make_run(**{f"val_dataloader.dataset.{key}": value for key, value in settings.items()})
    (runner,) = load_detectors([TrainedRun.read(folder)]).values()
    truth = runner.annotated(0)
    assert number > 1 and len(truth) == number and truth.masks is None


def test_an_unknown_data_set(make_run, monkeypatch):
    run = TrainedRun.read(make_run())
    detectors = load_detectors([run])
    monkeypatch.setattr(detectors["run"].dataset, "get_data_info", lambda index: {})
    html = render_runs([run], detectors)
    assert "val_dataloader: expected a data set of images" in html


def test_predictions_keep_crops(make_run, data, monkeypatch):
    """No masks of the picture's size: of a photograph with 100 objects, they are a gigabyte."""
    monkeypatch.setattr(Crops, "whole", None)
    (runner,) = load_detectors([TrainedRun.read(make_run())]).values()
    assert runner.predict(0).detections.crops is not None
    detector = dcnzoo.load("mask-rcnn_r14-mdconv_fpn_8e_shapes", device="cpu")
    assert explain(detector, next((data / "val").glob("*.png"))).objects


def test_the_better_of_two_labels_is_shown_in_any_order(make_run, monkeypatch):
    """Mask2Former's objects are not sorted by their scores."""
    box, labels = torch.tensor([[10.0, 10, 50, 50]] * 2), torch.tensor([0, 1])
    objects = InstanceData(bboxes=box, scores=torch.tensor([0.6, 0.9]), labels=labels)
    monkeypatch.setattr("dcnzoo.openmmlab.detector.instances_of", lambda sample: objects)
    (runner,) = load_detectors([TrainedRun.read(make_run())]).values()
    shown = runner.predict(0).detections.with_one_label()
    assert shown.labels.tolist() == [1] and shown.scores == pytest.approx([0.9])


def test_classes_of_two_runs_side_by_side():
    objects, confusion = np.array([3, 0, 1]), np.zeros((4, 4), int)
    results = {
        name: ClassResults(objects, np.array(ap), np.zeros((3, 101)), confusion, np.array(errors))
        for name, ap, errors in (
            ("a", [0.5, np.nan, 0.25], [0, 2, 0, 3, 1]),
            ("b", [0.25, np.nan, np.nan], [0, 2, 0, 0, 3]),
        )
    }
    head, means, *rows = class_table(results, "xyz")
    assert means == ["mean of 2", "4", "0.375", "0.250", "0.000", "0.000"], "of the AP that is defined"
    assert head == ["class", "objects", "box AP, a", "box AP, b", "box AP50, a", "box AP50, b"]
    assert most_errors(results.values()) == {1: 4, 4: 4, 3: 3} and most_errors([]) == {}
    assert list(most_errors(results.values(), number=5)) == [1, 4, 3], "no picture without an error"
    assert [row[:4] for row in rows] == [["x", "3", "0.500", "0.250"], ["z", "1", "0.250", "–"]]


def test_a_run_without_validation(make_run, tmp_path):
    folder = make_run(logs=[[(2, 1, 5.0)]])
    runs = [TrainedRun.read(folder)]
    html = render_runs(runs, {})
    assert ">Learning curves</h2>" in html and ">All validations</h2>" not in html
    assert summary(runs, {}) == [["run", "s / iteration", "parameters"], ["run", "0.250", "–"]]


def test_pictures_of_resized_and_padded_images(make_run, data):
    """Figures use the pixels of the file, whatever the model's input was."""
    folder = make_run()
    cfg = Config.fromfile(folder / "config.py")
    runner = ValidationRunner(cfg, folder / "epoch_2.pth")
    runner.threshold = 0
    small = runner.predict(1)
    resize = dict(type="Resize", scale=(192, 320), keep_ratio=False)  # ×1.5 wide, ×2.5 high
    cfg.val_dataloader.dataset.pipeline[1] = resize
    cfg.model.data_preprocessor.pad_size_divisor = 224
    runner = ValidationRunner(cfg, folder / "epoch_2.pth")
    runner.threshold = 0
    large = runner.predict(1)
    assert small.frame == Frame((128, 128)) and large.frame == Frame((448, 224), (1 / 2.5, 1 / 1.5))
    for part in ("image", "boxes"):
        assert np.array_equal(getattr(small.truth, part), getattr(large.truth, part))
    assert small.truth.masks.shape == large.truth.masks.shape == (len(small.truth.labels), 128, 128)
    file = json.loads((data / "annotations" / "val.json").read_text())
    boxes = [a["bbox"] for a in file["annotations"] if a["image_id"] == file["images"][1]["id"]]
    assert small.truth.boxes[:, :2] == pytest.approx(np.array(boxes)[:, :2])
    assert large.detections.boxes.max() <= 128 and large.detections.masks.shape[1:] == (128, 128)
    assert list(large.statistics) == [field.name for field in large.fields]
    # without offsets, the nine points of a layer are around the location, one pixel of its map apart
    field = dataclasses.replace(large.fields[0], offset=torch.zeros_like(large.fields[0].offset))
    points, _ = points_of(field, Box(32.0, 64.0, 32.0, 64.0), large.frame)
    apart = 448 / 2.5 / field.input_size[0], 224 / 1.5 / field.input_size[1]
    assert np.ptp(points, 0) == pytest.approx(np.multiply(apart, 2))
    assert (points.mean(0) - torch.tensor([64.0, 32.0])).abs().max() <= max(apart)


PLAIN, FLOAT = {"type": "LoadImageFromFile"}, {"type": "LoadImageFromFile", "to_float32": True}
NORMALISED = {"type": "Normalize", "mean": [123.0, 116, 103], "std": [58.0, 57, 57]}
PACK = {"type": "PackDetInputs"}


@pytest.mark.parametrize(
    ("pixels", "steps"),
    [
        ((200, 100, 50), [FLOAT, PACK]),
        ((200, 100, 50), [PLAIN, NORMALISED, PACK]),
        ((120,), [FLOAT, PACK]),
        ((200 * 256, 100 * 256, 50 * 256), [PLAIN, PACK]),
        ((200, 100, 50, 255), [PLAIN, PACK]),
    ],
)
def test_a_picture_is_shown_in_the_colours_of_its_file(data, tmp_path, pixels, steps):
    shutil.copytree(data, tmp_path / "data")
    (file, *_) = sorted((tmp_path / "data/val").iterdir())
    bgr = [*pixels[2::-1], *pixels[3:]]
    picture = np.full((128, 128, len(pixels)), bgr, np.uint16 if max(pixels) > 255 else np.uint8)
    assert cv2.imwrite(str(file), picture)
    name = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
    detector = dcnzoo.load(name, device="cpu", cfg_options={"test_dataloader.dataset.pipeline": steps})
    cfg = Config.fromfile(DEFORMABLE)
    settings = {"pipeline": steps, "data_root": f"{tmp_path}/data/", "shapes": None}
    cfg.merge_from_dict({f"val_dataloader.dataset.{key}": value for key, value in settings.items()})
    truth = ValidationRunner(cfg, None).annotated(0)
    explanation = explain(detector, file)
    uri = re.search(r'"image":"data:image/png;base64,([^"]+)', render_explanation(explanation, "title"))[1]
    page = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
    result = detector(file, score_threshold=1)
    expected = (120, 120, 120) if len(pixels) == 1 else (200, 100, 50)
    for shown in (truth.image, explanation.image, page, result.image, np.asarray(result.draw())):
        assert shown.dtype == np.uint8 and (shown == expected).all()


def made(boxes, labels, scores=None, size=(20, 60)):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.ones(len(boxes)) if scores is None else np.array(scores)
    return Detections(boxes, scores, np.array(labels, int), None, ("a", "b"), np.zeros((*size, 3), np.uint8))


def test_ap_of_masks():
    """Boxes are right; the masks of class b are half of the objects, those of class a are the objects."""
    masks = np.zeros((2, 20, 60), bool)
    masks[0, 2:9, 3:20], masks[1, 12:18, 30:50] = True, True
    codes = [encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    boxes = [[3, 2, 20, 9], [30, 12, 50, 18]]
    truth = [
        dict(bbox=box, bbox_label=i, ignore_flag=0, mask=code)
        for i, (box, code) in enumerate(zip(boxes, codes, strict=True))
    ]
    masks[1, :, 40:] = False
    detections = dataclasses.replace(made(boxes, [0, 1], [0.9, 0.8]), crops=masks)
    result = evaluate([truth], [detections], 2, threshold=0.3)
    assert result.ap.tolist() == pytest.approx([1, 1]) and result.mask_ap.tolist() == pytest.approx([1, 0.1])
    assert class_table({"": result}, "ab")[0] == ["class", "objects", "box AP", "box AP50", "mask AP"]


@pytest.mark.parametrize(("boxes", "centre"), [([[0, 0, 20, 10], [30, 4, 60, 20]], (45, 12)), ([], (30, 10))])
def test_sampling_at_the_centre_of_the_largest_object(boxes, centre):
    grid = torch.zeros(9, 2, 10, 30)
    field = SamplingField("layer", grid, grid[:, 0], (3, 3), (2, 2), (1, 1), (1, 1), (20, 60))
    prediction = Prediction(made(boxes, [0] * len(boxes)), made([], []), [field], Frame((20, 60)), {})
    picture, *_ = show_sampling("title", prediction).parts
    assert f"9 points; mean distance from ({centre[0]}, {centre[1]})" in picture


def test_precision_and_confusion():
    """Worked by hand: a wrong class, a missed object, a detection of nothing, and an ignored object."""
    box, far, crowd = [0, 0, 10, 10], [30, 0, 40, 10], [0, 12, 60, 20]
    first = [dict(bbox=box, bbox_label=0, ignore_flag=0), dict(bbox=far, bbox_label=1, ignore_flag=0)]
    second = [dict(bbox=box, bbox_label=0, ignore_flag=0), dict(bbox=crowd, bbox_label=0, ignore_flag=1)]
    found = [
        made([box, [30, 0, 40, 9], [50, 0, 60, 9]], [0, 0, 1], [0.9, 0.8, 0.7]),
        made([[1, 13, 9, 19], box], [0, 0], [0.6, 0.2]),
    ]
    result = evaluate([first, second], found, 3, threshold=0.3)
    assert result.confusion.tolist() == [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    # an object of the right place and the wrong class is none; without it, each image has one error
    assert result.errors.tolist() == [1, 1]
    # class a: right at .9, wrong at .8, right at .2: precision 1 up to recall .5, then 2/3
    assert result.precision[0] == pytest.approx(np.where(np.arange(101) <= 50, 1, 2 / 3))
    assert result.precision[1].tolist() == [0] * 101 and np.isnan(result.precision[2]).all()
    # boxes of IoU 1 for the first class, .9 for the other class
    assert result.objects.tolist() == [2, 1, 0] and result.ap == pytest.approx(
        [result.precision[0].mean(), 0, np.nan], nan_ok=True
    )
    ap = f"{(51 + 50 * 2 / 3) / 101:.3f}"
    assert class_table({"": result}, "abc")[2:] == [
        ["a", "2", ap, ap],
        ["b", "1", "0.000", "0.000"],
    ]
    assert result.mask_ap is None
    many = evaluate(
        [[], [], *[first] * 20], [made([box] * (i % 11), [1] * (i % 11)) for i in range(22)], 2, 0.3
    )
    assert (
        len(many.errors) == 22 and many.confusion.sum() == sum(max(2, i % 11 + 1) for i in range(2, 22)) + 1
    )
    empty = evaluate([first, []], [made([], []), made([], [])], 2, threshold=0.3)
    assert empty.confusion.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]] and not empty.precision.any()
