"""The metrics equal those of pycocotools and of MMDetection, on random objects with many ties."""

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.evaluation import MultiDatasetsEvaluator
from mmdet.evaluation.metrics import coco_metric
from mmengine.config import Config
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcnzoo.detect import metric_names, metrics
from dcnzoo.detect.detections import Detections
from dcnzoo.openmmlab.datasets.coco import CocoDataset, CocoMetric
from dcnzoo.openmmlab.hooks.summary import SummaryHook
from dcnzoo.report.evaluation import evaluate
from dcnzoo.report.validation import ValidationRunner
from tests.helpers.demo import PLAIN
from tests.helpers.products import in_turn

SIZE = 96
CLASSES = ["a", "b", "c", "d"]  # d has no objects
IDS = [7, 3, 90, 4_000_000_000]


def rectangle(box):
    mask = np.zeros((SIZE, SIZE), np.uint8, "F")
    x, y, width, height = np.array(box, int)
    mask[y : y + height, x : x + width] = 1
    rle = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def made(seed, most=8):
    """Return a COCO file and detections, with coarse coordinates and scores, of which many are equal."""
    random = np.random.default_rng(seed)
    objects, detections = [], []
    images = [{"id": 10 * i + 1, "width": SIZE, "height": SIZE, "file_name": f"{i}"} for i in range(6)]
    for image in images[:-1]:
        for _ in range(random.integers(0, 6)):
            box = (random.integers(1, 12, 4) * 4.0).tolist()
            crowd = int(random.random() < 0.2)
            common = {"image_id": image["id"], "category_id": IDS[random.integers(3)], "bbox": box}
            shape = rectangle(box) if crowd or random.random() < 0.5 else [corners(box)]
            more = {"area": box[2] * box[3], "iscrowd": crowd, "segmentation": shape}
            if random.random() < 0.2:
                more["ignore"] = 1
            objects.append({**common, **more, "id": len(objects) + 1})
            for _ in range(random.integers(0, most)):
                moved = np.clip(box + random.integers(-1, 2, 4) * [2.0, 2, 2, 2], 1, 47).tolist()
                label = common["category_id"] if random.random() < 0.8 else IDS[random.integers(4)]
                score = round(random.random(), 1)
                detections.append({**common, "bbox": moved, "category_id": label, "score": score})
    categories = [{"id": number, "name": name} for number, name in zip(IDS, CLASSES, strict=True)]
    return {"images": images, "annotations": objects, "categories": categories}, detections


def corners(box):
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def read(content):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(content))
        truth.createIndex()
    return truth


SETTINGS = [
    pytest.param(most, use_classes, id=f"{most}-{use_classes}")
    for most in ([1, 10, 100], [100, 300, 1000], [1, 2, 3])
    for use_classes in (1, 0)
]


@in_turn("most, use_classes, kind", SETTINGS, ["bbox", "segm"])
def test_evaluation_equals_that_of_pycocotools(monkeypatch, kind, most, use_classes):
    for seed in range(12):
        if seed % 2:  # one or two categories at a time
            monkeypatch.setattr(metrics, "PAIRS", 6 * (1 + seed % 3))
        content, detections = made(seed, most=8 if seed else 200)
        objects = [
            {
                **each,
                "area": each["bbox"][2] * each["bbox"][3],
                "iscrowd": 0,
                "segmentation": rectangle(each["bbox"]),
            }
            for each in detections
        ]
        results = []
        for evaluation in (metrics.Evaluation, COCOeval):
            monkeypatch.setattr(metrics, "Evaluation", evaluation)
            own = [dict(each) for each in objects]
            if kind == "segm":
                for each in own:
                    del each["bbox"]
            result = metrics.match(read(content), own, kind, maxDets=most, useCats=use_classes)
            with contextlib.redirect_stdout(io.StringIO()):
                result.summarize()
            stats = result.stats
            if evaluation is COCOeval:  # its AP is that at 100 detections, −1 without this limit
                stats[0] = mean_at_the_largest_limit(result)
            results.append({**result.eval, "stats": stats})
        for key in ("precision", "recall", "scores", "stats"):
            np.testing.assert_allclose(*(result[key] for result in results), rtol=0, atol=1e-12)


def mean_at_the_largest_limit(evaluation):
    values = [value for value in evaluation.eval["precision"][..., 0, -1].ravel() if value > -1]
    return sum(values) / len(values) if values else -1


def crowded(folder, count, right):
    """Write a file with an object of each of two classes; return detections, of which only one is right.

    Args:
        count: number of detections.
        right: index of the right one, in the order of scores, for both classes.
    """
    images = [{"id": 1, "width": 2000, "height": 60, "file_name": "1.jpg"}]
    box = [5.0, 5.0, 40.0, 40.0]
    common = {"image_id": 1, "bbox": box, "area": 1600, "iscrowd": 0}
    objects = [{**common, "id": label, "category_id": label} for label in (1, 2)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    boxes = np.tile([1000.0, 0, 1010, 10], (2 * count, 1))
    boxes[right] = boxes[count + right] = [5, 5, 45, 45]
    scores = np.tile(np.linspace(0.9, 0.1, count), 2)
    return {"bboxes": boxes, "scores": scores, "labels": np.repeat([0, 1], count)}


@pytest.mark.parametrize(
    "limits, ap",
    [((100, 300, 400), 1 / 121), ((200, 300, 400), 1 / 121), ((100, 300, 1000), 1 / 121), ((1, 10, 100), 0)],
)
def test_ap_and_classes_are_at_the_largest_limit(tmp_path, limits, ap):
    """The right detection of each class is the 121st: it counts only if the limit is larger."""
    found = crowded(tmp_path, 130, right=120)
    metric = CocoMetric(str(tmp_path / "truth.json"), proposal_nums=limits, classwise=True)
    metric.dataset_meta = {"classes": ["a", "b"]}
    tensors = {key: torch.tensor(value) for key, value in found.items()}
    metric.process({}, [{"img_id": 1, "ori_shape": (60, 2000), "pred_instances": tensors}])
    figures = metric.evaluate(1)
    names = ("coco/bbox_mAP", "coco/bbox_mAP_50", "coco/a_precision", "coco/b_precision")
    assert [figures[name] for name in names] == [round(ap, 3)] * 4

    truth = [[{"bbox": [5, 5, 45, 45], "bbox_label": label, "ignore_flag": 0} for label in (0, 1)]]
    detections = [Detections(found["bboxes"], found["scores"], found["labels"])]
    of_report = evaluate(truth, detections, 2, 0.3, max(limits))
    np.testing.assert_allclose(of_report.ap, [ap] * 2)


def test_report_counts_as_many_detections_as_the_evaluator(monkeypatch):
    shapes = Config.fromfile(PLAIN)
    monkeypatch.setattr("dcnzoo.report.validation.build_model", lambda *_, **__: torch.nn.Linear(1, 1))
    monkeypatch.setattr(
        "dcnzoo.report.validation.DATASETS.build", lambda _: SimpleNamespace(metainfo={"classes": ()})
    )
    assert ValidationRunner(shapes, "")._limit == 1000
    shapes.val_evaluator.proposal_nums = (100, 300, 400)
    assert ValidationRunner(shapes, "")._limit == 400


@pytest.mark.parametrize("kinds", [["bbox", "segm"], ["bbox", "proposal"]])
def test_metric_equals_that_of_mmdetection(tmp_path, monkeypatch, kinds):
    """dcnzoo's metric returns the same values with and without a file of results.

    MMDetection's rows of classes are those of other classes if the ids do not ascend in the file.
    """
    for seed in (1, 2):
        content, detections = made(seed)
        content["categories"].sort(key=lambda category: category["id"])
        names, ids = zip(*((each["name"], each["id"]) for each in content["categories"]), strict=True)
        (tmp_path / "truth.json").write_text(json.dumps(content))
        values = []
        for kind, prefix in (
            (coco_metric.CocoMetric, None),
            (CocoMetric, None),
            (CocoMetric, str(tmp_path / "results")),
        ):
            metric = kind(str(tmp_path / "truth.json"), metric=kinds, classwise=True, outfile_prefix=prefix)
            metric.dataset_meta = {"classes": names}
            for image in content["images"]:
                own = [each for each in detections if each["image_id"] == image["id"]]
                boxes = np.array([each["bbox"] for each in own], np.float32).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                size = {"width": SIZE, "height": SIZE, "img_id": image["id"]}
                scores = np.array([each["score"] for each in own], np.float32)
                result = {
                    "img_id": image["id"],
                    "bboxes": boxes,
                    "scores": scores,
                    "mask_scores": scores[::-1],
                    "labels": np.array([ids.index(each["category_id"]) for each in own], int),
                    "masks": [rectangle(each["bbox"]) for each in own],
                }
                metric.results.append((size, result))
            numbers = metric.evaluate(len(content["images"]))
            values.append({key: np.nan_to_num(value, nan=-1) for key, value in numbers.items()})
        assert values[0] == pytest.approx(values[1], abs=1e-12) and values[1] == values[2]
    assert (tmp_path / "results.bbox.json").is_file()


def perceived(metric, content, detections, ids, images):
    """Give a metric the detections in some images."""
    metric.dataset_meta = {"classes": CLASSES}
    for image in images:
        own = [each for each in detections if each["image_id"] == image]
        boxes = torch.tensor([each["bbox"] for each in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([ids.index(each["category_id"]) for each in own], dtype=int)
        scores = torch.tensor([each["score"] for each in own])
        found = {"bboxes": boxes, "labels": labels, "scores": scores}
        metric.process({}, [{"img_id": image, "ori_shape": (SIZE, SIZE), "pred_instances": found}])


def by_hand(content, detections, images, thresholds=None):
    """Return pycocotools' evaluation of some images."""
    found = metrics.load_detections(read(content), [{**each} for each in detections])
    evaluation = COCOeval(read(content), found, "bbox")
    evaluation.params.imgIds = images
    if thresholds is not None:
        evaluation.params.iouThrs = np.array(thresholds)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("thresholds", [None, [0.5], [0.3, 0.5], 0.75])
@pytest.mark.parametrize("part", [slice(None), slice(1, 4)])
def test_ap_of_the_predicted_images_at_any_thresholds(tmp_path, monkeypatch, caplog, part, thresholds):
    """The AP and those of the classes are pycocotools' on the images that were predicted."""
    lines = []
    monkeypatch.setattr("dcnzoo.openmmlab.datasets.coco.print_log", lambda text, **_: lines.append(text))
    content, detections = made(3)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    images = [image["id"] for image in content["images"]][part]
    detections = [each for each in detections if each["image_id"] in images]
    metric = CocoMetric(
        str(tmp_path / "truth.json"), metric=["bbox", "proposal"], iou_thrs=thresholds, prefix="x"
    )
    for _ in range(2):
        perceived(metric, content, detections, IDS, images)
        figures = metric.evaluate(len(images))
    expected = by_hand(content, detections, images, None if thresholds is None else np.atleast_1d(thresholds))
    assert figures["x/bbox_mAP"] == pytest.approx(mean_at_the_largest_limit(expected), abs=6e-4)
    assert metric.class_aps.keys() == {"bbox"}, "proposals have no classes"
    for position, number in enumerate(expected.params.catIds):
        precision = expected.eval["precision"][:, :, position, 0, -1]
        ap, ap_50 = metric.class_aps["bbox"][CLASSES[IDS.index(number)]]
        at_50 = precision[np.isclose(expected.params.iouThrs, 0.5)]
        own = np.nan_to_num([ap, ap_50], nan=-1)
        np.testing.assert_allclose(own, [precision.mean(), at_50.mean() if at_50.size else -1], atol=1e-12)
    assert len(lines) == (part != slice(None)) and all("3 predicted of 6" in line for line in lines)


@pytest.mark.parametrize("prefixes", [("day", "night"), ("day/a", "night/a")])
def test_each_of_several_data_sets_keeps_its_ap(tmp_path, capsys, prefixes):
    """A key keeps the part of its prefix that the others do not have; rows of classes are below their AP."""
    evaluator_metrics, expected = [], {}
    for seed, prefix in enumerate(prefixes, 1):
        content, detections = made(seed)
        (tmp_path / f"{seed}.json").write_text(json.dumps(content))
        metric = CocoMetric(str(tmp_path / f"{seed}.json"))
        images = [image["id"] for image in content["images"]]
        perceived(metric, content, detections, IDS, images)
        evaluator_metrics.append(metric)
        expected[prefix.partition("/")[0]] = mean_at_the_largest_limit(by_hand(content, detections, images))
    evaluator = MultiDatasetsEvaluator(evaluator_metrics, prefixes)
    evaluator.dataset_meta = {"cumulative_sizes": [6, 12], "classes": CLASSES}
    second = evaluator_metrics[1].results
    evaluator_metrics[0].results += second  # every metric gets the results of all data sets
    evaluator_metrics[1].results = evaluator_metrics[0].results[:]
    evaluator_metrics[0].dataset_meta = evaluator_metrics[1].dataset_meta = {"classes": CLASSES}
    figures = evaluator.evaluate(12)
    table = metric_names.named(figures)
    assert len(table) == sum(value != -1 for value in figures.values()) and -1 not in table.values()
    for name, ap in expected.items():
        assert table[f"{name} box AP"] == pytest.approx(ap, abs=6e-4)
    capsys.readouterr()
    SummaryHook().after_test_epoch(SimpleNamespace(test_evaluator=evaluator), figures)
    rows = [line.partition("  ") for line in capsys.readouterr().out.splitlines()]
    assert [head for head, _, _ in rows if head != "classes"] == [*table]
    classes = [rest.split(" (AP50)")[0].strip() for head, _, rest in rows if head == "classes"]
    assert classes == [f"{name} box AP" for name in expected]
    position = [head for head, _, _ in rows].index("classes")
    assert rows[position - 1][0].startswith("day") and rows[position + 1][0].startswith("night")


def test_names_that_are_alone_have_no_prefix():
    keys = ["coco/bbox_mAP", "coco/segm_mAP_50", "pascal_voc/mAP", "a/b/bbox_mAP_s", "b/a/bbox_mAP_s"]
    names = ["box AP", "mask AP50", "pascal_voc/mAP", "a/b/bbox_mAP_s", "b/a/bbox_mAP_s"]
    assert [*metric_names.metric_names(keys).values()] == names


def test_report_counts_the_objects_of_the_ap(tmp_path):
    """The report's AP of a class is that of the log, also with objects that are not trained."""
    content, detections = made(5)
    for number, each in enumerate(content["annotations"]):
        each["ignore"] = number % 2
    content["annotations"][0]["area"] = 0
    (tmp_path / "truth.json").write_text(json.dumps(content))
    data = CocoDataset(
        ann_file=str(tmp_path / "truth.json"), metainfo={"classes": CLASSES}, test_mode=True,
        pipeline=[], data_prefix={"img": "s3://nowhere/"},
    )  # fmt: skip
    images = [image["id"] for image in content["images"]]
    expected = by_hand(content, detections, images)
    found = []
    for image in images:
        own = [each for each in detections if each["image_id"] == image]
        boxes = np.array([each["bbox"] for each in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([IDS.index(each["category_id"]) for each in own], int)
        found.append(Detections(boxes, np.array([each["score"] for each in own]), labels))
    result = evaluate([data.counted_objects(i) for i in range(len(data))], found, len(CLASSES), 0.3, 100)
    aps = expected.eval["precision"][:, :, :, 0, -1].mean((0, 1))
    order = [expected.params.catIds.index(number) for number in IDS]
    np.testing.assert_allclose(result.ap, np.where(aps < 0, np.nan, aps)[order], atol=1e-12)


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [("images", "id", 1), ("annotations", "id", 1), ("categories", "id", 7), ("categories", "name", "a")],
)
def test_what_pycocotools_counts_wrong_is_refused(tmp_path, key, field, value):
    content, _ = made(1)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    assert metrics.read_coco(tmp_path / "truth.json", CLASSES).imgs
    content[key][1][field] = value
    (tmp_path / "truth.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"truth\.json: .*{key}.* {value} again"):
        metrics.read_coco(tmp_path / "truth.json", CLASSES)
