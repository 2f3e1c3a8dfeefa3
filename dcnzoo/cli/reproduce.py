"""``dcnzoo reproduce``, also ``tools/reproduce.py``."""

import contextlib
import time
from pathlib import Path
from typing import Any

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option
from dcnzoo.cli._terminal import print_columns
from dcnzoo.utils.files import last_checkpoint
from dcnzoo.utils.text import counted


@click.command(cls=_options.Command)
@_options.model
@_options.checkpoint
@_options.runner
@option("--train", is_flag=True, help="Train the model first, or resume its training.")
@option(
    "--data-root",
    type=_options.NAME,
    metavar="FOLDER",
    help="Folder of COCO: annotations/, train2017/, val2017/ (default: the config's).",
)
@option("--subset", type=_options.POSITIVE, metavar="N", help="Evaluate only the first N images.")
@option(
    "--out", type=_options.FILE, default="work_dirs/reproduce.jsonl", help="Append the result to this file."
)
@option("--force", is_flag=True, help="Append to another file than this command's, and replace files.")
@_options.unsafe_load
@_options.allow_partial
@_options.verbose
def command(
    model: str,
    checkpoint: str | None,
    train: bool,
    data_root: str | None,
    subset: int | None,
    out: Path,
    force: bool,
    unsafe_load: bool,
    allow_partial: bool,
    verbose: bool,
    **run: Any,
) -> None:
    """Evaluate a model and compare its AP with the one in the zoo.

    MODEL is a name in the zoo (dcnzoo zoo list), a config or a work directory.

    \b
    examples:
      dcnzoo reproduce mask-rcnn_r14-mdconv_fpn_8e_shapes
      dcnzoo reproduce faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco --data-root data/coco
      dcnzoo reproduce CONFIG --train
    """
    if train:
        _options.refuse("--train", "checkpoint", "unsafe_load")
    claim = _options.output_files(force)
    claim(out)

    from mmengine.dist import is_main_process
    from mmengine.model import revert_sync_batchnorm

    from dcnzoo.openmmlab.config_errors import config_errors
    from dcnzoo.openmmlab.hooks import SummaryHook
    from dcnzoo.openmmlab.runner import Start, build_runner, load_config, start_of
    from dcnzoo.utils.fetch import verify
    from dcnzoo.utils.jsonl import append_row, circumstances
    from dcnzoo.utils.lock import lock_work_dir
    from dcnzoo.zoo import reproduction
    from dcnzoo.zoo.source import resolve

    source = resolve(model, checkpoint)
    listed = source.entry
    if listed and source.weights is None:  # of a config file
        source = resolve(listed.id)
    cfg = load_config(str(source.config), **run)
    lock = lock_work_dir(cfg.work_dir, cfg.launcher) if train else contextlib.nullcontext()
    with lock, config_errors(cfg):
        images = reproduction.use_data(cfg, data_root, subset, claim)
        weights = None if train else source.read_weights()
        summary = None if verbose else SummaryHook()
        runner = build_runner(
            cfg, training=train, summary=summary, force=force, start=start_of(cfg) if train else Start()
        )
        if cfg.launcher == "none":
            runner.model = revert_sync_batchnorm(runner.model)
        started = time.time()
        if train:
            runner.train()
            # from the file: it contains the moving average if the config has one
            weights = last_checkpoint(Path(cfg.work_dir))
        assert weights is not None  # of the options, of the zoo, or of the training
        measured = reproduction.evaluate(runner, weights, unsafe_load, allow_partial)
    if not is_main_process():
        return
    row = {
        "model": listed.id if listed else model,
        **reproduction.compare(measured, listed),
        "data": cfg.test_evaluator["ann_file"] if isinstance(cfg.test_evaluator, dict) else "",
        "images": images,
        "subset": subset,
        "trained": train,
        "checkpoint": weights.name,
        "sha256": verify(weights, "sha256:").removeprefix("sha256:"),
        "seconds": round(time.time() - started, 1),
        **circumstances(next(runner.model.parameters()).device),
    }
    append_row(out, row)
    _show(row)
    print(f"added to {out}")


def _show(row: dict) -> None:
    print(f"\n{row['model']} on {counted(row['images'], 'images')} of {row['data']}")
    lines = [("", "measured", "listed", "difference")]
    for name, value in row["measured"].items():
        difference = row["difference"].get(name)
        signed = "–" if difference is None else f"{difference:+.1f}"
        lines.append((name, str(value), str(row["listed"].get(name, "–")), signed))
    print_columns(lines, numbers=True)
    if row["listed"]:
        print(f"listed: {row['source']}")
    if row["subset"] is not None and row["listed"]:
        print("Measured on a subset; the listed figure is for all images.")
