"""Data sets and their metric; the import registers them."""

from mmdet.registry import DATASETS, METRICS

from dcnzoo.compat import patches
from dcnzoo.openmmlab.datasets.coco import CocoDataset, CocoMetric
from dcnzoo.openmmlab.datasets.images import ERRORS_NAME_PICTURES
from dcnzoo.openmmlab.patches.kernels import registered

patches.add(
    registered(DATASETS, CocoDataset, "checks the annotation file"),
    registered(METRICS, CocoMetric, "checks the annotation file"),
    ERRORS_NAME_PICTURES,
)
