"""AP of the metric in the registry, worked out by hand from COCO's definition."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from dcnzoo.openmmlab.datasets.coco import CocoMetric

SIZE = 160
A, B = 0, 1
# (image, class, x1, y1, x2, y2), and iscrowd or the score
TRUTH = [
    (0, A, 0, 0, 100, 100, 0),
    (1, B, 0, 0, 50, 50, 0),
    (1, B, 100, 0, 150, 50, 0),
    (1, B, 100, 100, 160, 160, 1),
]
FOUND = [
    (0, A, 0, 0, 100, 72, 0.5),  # IoU 0.72: right at 5 of the 10 thresholds
    (1, B, 0, 0, 50, 50, 0.9),
    (1, B, 0, 100, 50, 150, 0.95),  # wrong
    (1, B, 110, 110, 130, 130, 0.99),  # in the crowd, so it does not count
]
# half of B's objects are found, with precision 1/2: the first 51 of the 101 recalls
AP_B = 0.5 * 51 / 101
EXPECTED = {"": (0.5 + AP_B) / 2, "_50": (1 + AP_B) / 2, "_75": AP_B / 2, "_s": -1, "_m": AP_B, "_l": 0.5}


def rectangle(x1, y1, x2, y2):
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    return mask


def annotation(image, label, *corners, iscrowd):
    x1, y1, x2, y2 = corners
    code = coco_mask.encode(rectangle(*corners))
    return {
        "image_id": image,
        "category_id": label + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
        "iscrowd": iscrowd,
    }


@pytest.mark.parametrize("first", [0, 1])
def test_average_precision(tmp_path, first):
    """Also if the ids of the annotations start at 0, which pycocotools takes for no match."""
    rows = [annotation(*row, iscrowd=iscrowd) for *row, iscrowd in TRUTH]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in range(2)],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, first)],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate("AB")],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    metric = CocoMetric(str(tmp_path / "truth.json"), metric=["bbox", "segm"])
    metric.dataset_meta = {"classes": ("A", "B")}
    for image in range(2):
        found = [row for row in FOUND if row[0] == image]
        prediction = {
            "bboxes": torch.tensor([row[2:6] for row in found], dtype=torch.float32),
            "labels": torch.tensor([row[1] for row in found]),
            "scores": torch.tensor([row[6] for row in found]),
            "masks": torch.tensor(np.array([rectangle(*row[2:6]) for row in found])),
        }
        metric.process({}, [{"img_id": image, "ori_shape": (SIZE, SIZE), "pred_instances": prediction}])
    figures = metric.evaluate(2)
    for kind in ("bbox", "segm"):
        assert {k: figures[f"coco/{kind}_mAP{k}"] for k in EXPECTED} == pytest.approx(EXPECTED, abs=1e-3)
