"""AP of MMDetection's metric compared with an implementation of COCO's definition."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch

from dcnzoo.openmmlab.datasets.coco import CocoMetric

# isort: split
from pycocotools import mask as rle

SIZE = 160
CLASSES = ("oval", "trefoil", "cross")
RANGES = {"": (0, 1e10), "_s": (0, 32**2), "_m": (32**2, 96**2), "_l": (96**2, 1e10)}
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def some_mask(rng):
    """An ellipse of random size, clipped to the image."""
    y, x = np.mgrid[:SIZE, :SIZE]
    radii = rng.uniform(3, 75, 2)
    mask = sum(((v - rng.uniform(0, SIZE)) / r) ** 2 for v, r in zip((y, x), radii, strict=True)) < 1
    return mask if mask.sum() > 9 else some_mask(rng)


def moved(mask, rng):
    """A possible detection: the mask, shifted and cut."""
    found = np.roll(mask, rng.integers(-9, 10, 2), (0, 1))
    found[:, : rng.integers(0, 40)] = False
    return found if found.sum() > 9 else mask


def box_of(mask):
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def some_images(rng):
    """(truth, found) per image: lists of (class, mask, crowd) and of (class, mask, score)."""
    images = []
    for kind in ("usual", "usual", "usual", "no truth", "none found", "empty", "many", "crowds"):
        truth = [(rng.integers(3), some_mask(rng), kind == "crowds" and rng.random() < 0.5) for _ in range(6)]
        hits = [(c, moved(m, rng), rng.random()) for c, m, _ in truth for _ in range(2) if rng.random() < 0.7]
        false = [(rng.integers(3), some_mask(rng), rng.random()) for _ in range(130 if kind == "many" else 5)]
        found = [(c if rng.random() < 0.9 else (c + 1) % 3, m, round(s, 2)) for c, m, s in hits + false]
        if kind == "many":  # more than 100 of one class
            found = [(0, m, s) for _, m, s in found]
        images.append(
            ([] if kind in ("no truth", "empty") else truth, [] if kind in ("none found", "empty") else found)
        )
    return images


def average_precision(images, overlaps, threshold, limits=RANGES[""], most=100):
    """COCO's AP: the mean over classes and 101 recalls of the best precision at that recall or above."""
    of_classes = []
    for label in range(3):
        number, outcomes = 0, []  # (score, right)
        for (truth, found), (sizes, overlap) in zip(images, overlaps, strict=True):
            ignored = [crowd or not limits[0] <= m.sum() <= limits[1] for _, m, crowd in truth]
            of_class = [i for i, (c, _, _) in enumerate(truth) if c == label]
            number += sum(not ignored[i] for i in of_class)
            free = dict.fromkeys(of_class, True)
            order = sorted((j for j, (c, _, _) in enumerate(found) if c == label), key=lambda j: -found[j][2])
            for j in order[:most]:
                # prefer objects that count, then the largest overlap, then the last object
                matches = [
                    (not ignored[i], overlap[j][i], i)
                    for i in of_class
                    if overlap[j][i] >= threshold and (free[i] or truth[i][2])
                ]
                if matches:
                    counts, _, i = max(matches)
                    free[i] = False
                    if counts:
                        outcomes.append((found[j][2], True))
                elif limits[0] <= sizes[j] <= limits[1]:
                    outcomes.append((found[j][2], False))
        if number:
            right = np.array([hit for _, hit in sorted(outcomes, key=lambda each: -each[0])], float)
            precision = right.cumsum() / np.arange(1, len(right) + 1)
            recall = right.cumsum() / number
            best = [precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]
            of_classes.append(np.mean(best))
    return np.mean(of_classes) if of_classes else -1


def all_overlaps(images, of_masks):
    """Per image: the sizes of the detections, and their overlaps with each object."""
    size = np.sum if of_masks else lambda mask: np.prod(box_of(mask)[2:] - box_of(mask)[:2])
    return [
        (
            [size(m) for _, m, _ in found],
            [[overlap(f, m, crowd, of_masks) for _, m, crowd in truth] for _, f, _ in found],
        )
        for truth, found in images
    ]


def overlap(found, true, crowd, of_masks):
    if of_masks:
        both, areas = (found & true).sum(), (found.sum(), true.sum())
    else:
        a, b = box_of(found), box_of(true)
        both = np.prod((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0))
        areas = np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])
    return both / (areas[0] if crowd else sum(areas) - both)


def write_truth(images, file):
    annotations = [
        {
            "image_id": number,
            "category_id": int(c) + 1,
            "bbox": [*box_of(m)[:2], *(box_of(m)[2:] - box_of(m)[:2])],
            "area": int(m.sum()),
            "segmentation": encoded(m),
            "iscrowd": int(crowd),
        }
        for number, (truth, _) in enumerate(images)
        for c, m, crowd in truth
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in range(len(images))
        ],
        "annotations": [{"id": i + 1, **annotation} for i, annotation in enumerate(annotations)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    file.write_text(json.dumps(content))


def encoded(mask):
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def measured(images, file, **settings):
    metric = CocoMetric(str(file), metric=["bbox", "segm"], **settings)
    metric.dataset_meta = {"classes": CLASSES}
    for number, (_, found) in enumerate(images):
        masks = np.array([m for _, m, _ in found]).reshape(-1, SIZE, SIZE)
        prediction = {
            "bboxes": torch.tensor(np.array([box_of(m) for m in masks]).reshape(-1, 4)),
            "labels": torch.tensor([c for c, _, _ in found], dtype=torch.int64),
            "scores": torch.tensor([s for _, _, s in found], dtype=torch.float64),
            "masks": torch.tensor(masks),
        }
        metric.process({}, [{"img_id": number, "ori_shape": (SIZE, SIZE), "pred_instances": prediction}])
    with contextlib.redirect_stdout(io.StringIO()):
        return metric.evaluate(len(images))


@pytest.mark.parametrize("seed", range(2))
def test_average_precision(seed, tmp_path):
    images, file = some_images(np.random.default_rng(seed)), tmp_path / "truth.json"
    write_truth(images, file)
    figures = measured(images, file)
    for kind in ("bbox", "segm"):
        overlaps = all_overlaps(images, kind == "segm")
        expected = {
            name: np.mean([average_precision(images, overlaps, t, limits) for t in THRESHOLDS])
            for name, limits in RANGES.items()
        }
        assert 0.05 < expected[""] < 0.95
        # MMDetection evaluates 100 detections per image for the mean, and 1000 for these two
        for name, t in (("_50", 0.5), ("_75", 0.75)):
            expected[name] = average_precision(images, overlaps, t, most=1000)
        for name, value in expected.items():
            assert figures[f"coco/{kind}_mAP{name}"] == pytest.approx(value, abs=1e-3), (kind, name)


def test_every_threshold(tmp_path):
    images, file = some_images(np.random.default_rng(7)), tmp_path / "truth.json"
    write_truth(images, file)
    overlaps = {kind: all_overlaps(images, kind == "segm") for kind in ("bbox", "segm")}
    for t in THRESHOLDS:
        figures = measured(images, file, iou_thrs=np.array([t]), metric_items=["mAP"])
        for kind in ("bbox", "segm"):
            expected = average_precision(images, overlaps[kind], t)
            assert figures[f"coco/{kind}_mAP"] == pytest.approx(expected, abs=1e-3), t
