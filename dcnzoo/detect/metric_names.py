"""Metrics of MMDetection's CocoMetric: their keys, ``coco/bbox_mAP_50``, and their names, ``box AP50``."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

KINDS = {"bbox": "box", "segm": "mask", "proposal": "proposal"}
METRICS = {  # end of a key → name, in the order of COCOeval.stats
    **{"mAP": "AP", "mAP_50": "AP50", "mAP_75": "AP75"},
    **{"mAP_s": "AP, small", "mAP_m": "AP, medium", "mAP_l": "AP, large"},
}
NAMES = {f"{kind}_{end}": f"{KINDS[kind]} {METRICS[end]}" for kind in KINDS for end in METRICS}
UNDEFINED = -1.0  # an AP without objects


def metric_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the name of each metric of a table: box AP50 for ``coco/bbox_mAP_50``; others are unchanged.

    Names that would be equal begin with the parts in which their prefixes differ: ``day box AP`` for
    ``day/coco/bbox_mAP``.
    """
    names = {key: NAMES.get(key.rpartition("/")[2], key) for key in keys}
    parts = dict[str, list[set[str]]]()  # name → the parts of each prefix
    for key, name in names.items():
        parts.setdefault(name, []).append({*key.split("/")[:-1]})
    for key, name in names.items():
        if len(parts[name]) > 1:
            shared = set.intersection(*parts[name])
            names[key] = " ".join([*(part for part in key.split("/")[:-1] if part not in shared), name])
    times = Counter(names.values())
    return {key: name if times[name] == 1 else key for key, name in names.items()}


def is_undefined(key: str, value: object) -> bool:
    """Whether the value of a CocoMetric key, such as ``coco/bbox_mAP``, means that there are no objects."""
    end = key.rpartition("/")[2]
    return (end in NAMES or end.startswith("AR")) and value == UNDEFINED


def named(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of an evaluator by their names, without those that are undefined."""
    names = metric_names(metrics)
    return {names[key]: value for key, value in metrics.items() if not is_undefined(key, value)}
