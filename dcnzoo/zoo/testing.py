"""``dcnzoo.test``: evaluate a detector; and compare its AP with the published one."""

import contextlib
import copy
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcnzoo.data.coco_file import CocoFile
from dcnzoo.data.dataset import ReadOptions
from dcnzoo.data.download import SMALL
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.data.shapes import ShapesSpec, make_shapes
from dcnzoo.openmmlab.config.tree import inner_data_sets, set_annotation_file
from dcnzoo.openmmlab.options import TestOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.device import require_device
from dcnzoo.openmmlab.runs.ranks import is_first
from dcnzoo.openmmlab.runs.recipe import TEST, Recipe
from dcnzoo.utils.errors import UserError, user_errors
from dcnzoo.utils.fetch import verify
from dcnzoo.utils.files import expanded, require_new, require_writable
from dcnzoo.utils.formats import EXPORTED
from dcnzoo.zoo.index import Model
from dcnzoo.zoo.measurements import append_row, circumstances
from dcnzoo.zoo.own_data import require_data, with_own_data
from dcnzoo.zoo.source import resolve

FIGURES = ("box AP", "mask AP")  # in metafiles


def test(
    model: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    zero_based: bool = False,
    clip: bool = False,
    skip_invalid: bool = False,
    cfg_options: Mapping[str, object] | None = None,
    force: bool = False,
    **options: Any,
) -> dict[str, float]:
    """Evaluate a detector on the test set of its config, or on other data; return the metrics::

        dcnzoo.test("work_dirs/fruits")["box AP"]
        dcnzoo.test("work_dirs/fruits", data="more_fruits/")["box AP"]

    ``detector.evaluate`` needs only a COCO file; this function needs a config, and runs its loader,
    evaluator and hooks, also on several GPUs.

    Args:
        model: a name in the zoo, a config file or a work directory.
        checkpoint: a file of weights or of ``dcnzoo export``, or an address (default: the weights of the zoo,
            or the best of the work directory).
        data: a folder or file with annotated pictures, as for :func:`dcnzoo.train`: those of its test set,
            else of its validation set, else all, without those that the config trains on. Objects are
            matched by the names of their classes.
        zero_based, clip, skip_invalid: see :class:`dcnzoo.data.dataset.ReadOptions`.
        cfg_options: settings to override, ``{"test_dataloader.batch_size": 4}``.
        force: replace files that exist.
        options: those of :class:`dcnzoo.openmmlab.options.TestOptions`, such as ``tta=True``.

    Returns:
        ``box AP``, ``mask AP50`` and so on, from 0 to 1; other metrics under the evaluator's names. Sizes
        without an object are left out. Of several test sets, the names begin with those of the sets.

    Raises:
        UserError: a mistake in an argument, the config or the data, or weights that do not fit.
    """
    reading = ReadOptions(zero_based, clip, skip_invalid)
    exported = Path(checkpoint) if checkpoint and str(checkpoint).endswith(EXPORTED) else None
    of_model = [key for key in cfg_options or () if key.startswith("model.")]
    if exported and of_model:
        raise UserError(f"cfg_options: expected no setting of the model with {exported}, got {of_model[0]}")
    of_test = TestOptions(exported=exported, **options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(user_errors())
        if files := of_test.files():
            require_new("test", *files, force=force)
        require_data(reading, data)
        source = resolve(model, checkpoint)
        recipe = source.recipe(cfg_options, TEST)
        if data is not None:
            if of_test.launcher != "none":
                raise UserError(f"data: expected one process, got launcher={of_test.launcher}")
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            recipe = with_own_data(recipe, expanded(data), reading, Path(folder), of_test.metrics)
        weights = source.read_weights()
        if exported:
            return execute.test(recipe, replace(of_test, exported=weights), None, force)
        return execute.test(recipe, of_test, weights, force)


def reproduce(
    model: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    data_root: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "work_dirs/reproduce.jsonl",
    cfg_options: Mapping[str, object] | None = None,
    unsafe_load: bool = False,
    **run: Any,
) -> dict[str, Any]:
    """Evaluate a detector, and compare its AP with the one in the zoo.

    Args:
        model, checkpoint: as for :func:`test`.
        data_root: see :func:`use_data`.
        out: file of JSON lines (``.jsonl``) to which the first process appends the result.
        unsafe_load: as for :func:`dcnzoo.load`.
        run: see :class:`dcnzoo.openmmlab.options.RunOptions`.

    Returns:
        The result: see :func:`compare`, and the circumstances.
    """
    options = TestOptions(**run, unsafe_load=unsafe_load)
    device = require_device(options.device)
    with user_errors():
        out = expanded(out)
        require_writable(out.parent)
        source = resolve(model, checkpoint)
        listed, weights = source.entry, source.read_weights()
        recipe, images = use_data(source.recipe(cfg_options, TEST), data_root)
        started = time.time()
        metrics = execute.test(recipe, options, weights)
        measured = {name: round(100 * metrics[name], 1) for name in FIGURES if name in metrics}
        row = {
            "model": listed.id if listed else str(model),
            **compare(measured, listed),
            "data": next(inner_data_sets(recipe.cfg.test_dataloader.dataset)).ann_file,
            "images": images,
            "checkpoint": weights.name,
            "sha256": verify(weights, "sha256:").removeprefix("sha256:"),
            "seconds": round(time.time() - started, 1),
            **circumstances(device),
        }
        if is_first():
            append_row(out, row)
        return row


def use_data(recipe: Recipe, root: str | os.PathLike[str] | None) -> tuple[Recipe, int]:
    """Return the recipe with the data in ``root`` (None: the config's folder), and the number of images.

    Raises:
        UserError: the annotations are missing or empty, or the test set is not a single data set.
    """
    cfg = copy.deepcopy(recipe.cfg)
    tested = list(inner_data_sets(cfg.test_dataloader.dataset))
    if len(tested) != 1 or "ann_file" not in tested[0]:
        raise UserError(f"test_dataloader: expected one data set with annotations, found {len(tested)}")
    (dataset,) = tested
    if root is not None:
        dataset.data_root = os.path.join(expanded(root), "")
    if dataset.get("shapes"):
        make_shapes(dataset.data_root, ShapesSpec(**dataset.shapes))
    annotations = Path(dataset.get("data_root") or "", dataset.ann_file)
    if not annotations.is_file():
        name = os.path.basename(os.path.normpath(dataset.get("data_root") or ""))
        download = f"--dataset-name {name}` downloads it" if name in SMALL else "--unzip` downloads COCO"
        hint = f"`dcnzoo data download {download}, data_root=… sets its folder"
        raise UserError(f"annotations: expected a file, found none at {annotations}; {hint}")
    try:
        content = CocoFile(annotations)
    except InvalidAnnotation as error:
        raise UserError(f"{annotations}: {error}") from None
    if not content.annotations:  # the annotations of test-dev are not published
        raise UserError(f"{annotations}: expected annotated objects, found none")
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    set_annotation_file(annotations, dataset, *evaluators)
    return replace(recipe, cfg=cfg), len(content.images)


def compare(measured: dict[str, float], model: Model | None) -> dict[str, object]:
    """Return the measured AP, the AP in the zoo, their difference, and the source of the AP in the zoo.

    The first source in the metafile takes precedence.
    """
    source = next(iter(model.sources()), "") if model else ""
    metrics = model.metrics(source) if model else {}
    listed = {name: metrics[name] for name in FIGURES if name in metrics}
    difference = {k: round(v - listed[k], 1) for k, v in measured.items() if k in listed}
    return {"measured": measured, "listed": listed, "difference": difference, "source": source}
