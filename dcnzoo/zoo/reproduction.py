"""Evaluate a detector on COCO and compare with the published result."""

import json
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from dcnzoo import zoo
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.data.split import select_images
from dcnzoo.detect.metrics import metric_name
from dcnzoo.openmmlab.config_check import datasets
from dcnzoo.openmmlab.weights import load_weights, without_wrapper
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import write_text

FIGURES = ("box AP", "mask AP")  # in metafiles


def use_data(cfg: Config, root: str | None, subset: int | None, claim: Callable[[Path], Path]) -> int:
    """Set the data paths in the config; return the number of images to evaluate.

    Args:
        root: folder of the data; None: the config's.
        subset: evaluate only this many images; None: all.
        claim: of :func:`dcnzoo.utils.files.output_files`, for the annotations of the subset.

    Raises:
        UserError: the annotations are missing or empty, or the test set is not a single data set.
    """
    loaders = ["train_dataloader", "val_dataloader", "test_dataloader"]
    if root is not None:
        for dataset in (d for loader in loaders if cfg.get(loader) for d in datasets(cfg[loader].dataset)):
            dataset.data_root = f"{root.rstrip('/')}/"
    tested = list(datasets(cfg.test_dataloader.dataset))
    if len(tested) != 1 or "ann_file" not in tested[0]:
        raise UserError(f"test_dataloader: expected one data set with annotations, found {len(tested)}")
    if tested[0].get("shapes"):
        make_shapes(tested[0].data_root, ShapesSpec(**tested[0].shapes))
    annotations = Path(tested[0].get("data_root") or "", tested[0].ann_file)
    if not annotations.is_file():
        raise UserError(
            f"annotations: expected a file, found none at {annotations} "
            "(dcnzoo data download downloads COCO; --data-root sets its folder)"
        )
    content = json.loads(annotations.read_text())
    if subset is not None:
        # also selects annotations: other objects would count as missed
        numbers = sorted(image["id"] for image in content["images"])[:subset]
        content = select_images(content, set(numbers))
        annotations, text = Path(cfg.work_dir, f"first-{subset}-images.json"), json.dumps(content)
        if not (annotations.is_file() and annotations.read_text() == text):  # by another process
            write_text(claim(annotations), text)
    if not content["annotations"]:
        raise UserError(f"{annotations}: expected annotated objects, found none")
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    for evaluator in evaluators:
        evaluator.ann_file = str(annotations.resolve())
    tested[0].ann_file = str(annotations.resolve())
    return len(content["images"])


def evaluate(runner: Runner, checkpoint: Path, unsafe_load: bool, allow_partial: bool) -> dict[str, float]:
    """Evaluate a checkpoint; return AP in percent by the names used in metafiles."""
    model = without_wrapper(runner.model)
    _, report = load_weights(model, checkpoint, unsafe_load, allow_partial)
    if report:
        runner.logger.info(f"{checkpoint}: {report}")
    metrics = runner.test()
    if not metrics:  # CocoMetric returns no metrics if nothing was detected
        metrics = {f"{metric}_mAP": 0.0 for metric in runner.test_evaluator.metrics[0].metrics}
    values = {metric_name(metric): value for metric, value in metrics.items()}
    return {name: round(100 * values[name], 1) for name in FIGURES if name in values}


def compare(measured: dict[str, float], model: zoo.Model | None) -> dict[str, object]:
    """Return the measured AP, that in the zoo, their difference, and the source of the AP in the zoo.

    A published result takes precedence over a measured one.
    """
    listed: dict[str, float] = {}
    sources = [] if model is None else model.sources()
    source = min(sources, key=lambda source: not source.startswith("published"), default="")
    if model is not None and source:
        listed = {k: float(v) for k, v in model.metrics(source).items() if k in FIGURES}
    difference = {k: round(v - listed[k], 1) for k, v in measured.items() if k in listed}
    return {"measured": measured, "listed": listed, "difference": difference, "source": source}
