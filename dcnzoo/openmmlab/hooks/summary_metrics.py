"""The metrics of a validation or a test as texts: those that are shown, and the APs of the classes."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from dcnzoo.detect.metric_names import is_undefined, metric_names
from dcnzoo.utils.errors import printable
from dcnzoo.utils.text import cut

SHOWN_CLASSES = 12
COLUMNS = ("bbox_mAP", "bbox_mAP_50", "segm_mAP")  # of CocoMetric


def labels(metrics: Mapping[str, object], most: int | None = 3) -> dict[str, str]:
    """Return the keys and names of metrics: COCO's main APs or, without them, ``most``; None: all."""
    numbers = [key for key, value in metrics.items() if isinstance(value, Real)]  # numpy's, too
    known = [key for key in numbers if not is_undefined(key, metrics[key])]
    main = [key for key in known if key.rpartition("/")[2] in COLUMNS]
    names = metric_names(metrics)
    return {key: names[key] for key in (main if main and most else known[:most])}


def figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the values of the metrics in :func:`labels` as text, by name."""
    return {name: f"{metrics[key]:.3f}" for key, name in labels(metrics).items()}


def without_end(key: str) -> str:
    """Return the part of a CocoMetric key that its APs share: ``coco/bbox`` of ``coco/bbox_mAP_50``."""
    return key.partition("_mAP")[0]


def classes_of(evaluator: Any, metrics: Mapping[str, object]) -> dict[str, str]:
    """Return the AP and AP50 of each class; of many classes, only the best and worst.

    Returns:
        ``coco/bbox`` → a text that begins with the name of the AP, for each CocoMetric and its kinds.
    """
    rows = dict[str, str]()
    names = metric_names(metrics)
    for prefix, metric in _by_prefix(evaluator):
        for kind, aps in getattr(metric, "class_aps", {}).items():
            ordered: list = sorted(aps.items(), key=lambda item: -np.nan_to_num(item[1][0], nan=-1))
            half = SHOWN_CLASSES // 2
            shown = ordered if len(ordered) <= SHOWN_CLASSES else ordered[:half] + ordered[-half:]
            texts = []
            for name, (ap, ap_50) in shown:
                at_50 = "" if np.isnan(ap_50) else f" ({ap_50:.3f})"
                texts.append(f"{cut(printable(name), 20)} {ap:.3f}{at_50}")
            if len(shown) < len(ordered):
                texts.insert(half, "…")
            key = f"{prefix}/{kind}_mAP"
            rows[without_end(key)] = f"{names.get(key, key)} (AP50): {', '.join(texts)}"
    return rows


def _by_prefix(evaluator: Any) -> list[tuple[str, Any]]:
    """Return the metrics of an evaluator, each with the prefix of its keys."""
    metrics = getattr(evaluator, "metrics", ())
    sets = getattr(evaluator, "dataset_prefixes", [""] * len(metrics))  # of a MultiDatasetsEvaluator
    return [
        ("/".join(filter(None, (name, metric.prefix))), metric)
        for name, metric in zip(sets, metrics, strict=False)
    ]
