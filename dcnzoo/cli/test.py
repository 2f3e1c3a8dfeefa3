"""``dcnzoo test``, also ``tools/test.py`` and ``tools/deployment/test.py``."""

from pathlib import Path
from typing import Any

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import NAME, option


@click.command(cls=_options.Command)
@_options.model
@_options.checkpoint_argument
@_options.checkpoint
@_options.runner
@option(
    "--out",
    type=_options.FileName(".pkl", ".pickle", ".json"),
    metavar="FILE",
    help="Write the predictions: .pkl, or .json for COCO's format.",
)
@option("--show-dir", type=NAME, metavar="FOLDER", help="Write images with drawn detections to this folder.")
@option("--show-score-thr", type=float, help="Draw detections above this score (default: 0.3).")
@option("--tta", is_flag=True, help="Merge the detections of the image and its mirror image.")
@option(
    "--eval",
    "metrics",
    multiple=True,
    metavar="METRIC",
    help="Metric: bbox, segm or proposal; several times for several (default: the config's).",
)
@_options.settings("--eval-options", "Settings of the evaluator, such as classwise=True.")
@option("--format-only", is_flag=True, help="Write --out FILE.json without evaluating it.")
@_options.backend
@_options.device
@_options.force
@_options.allow_partial
@_options.verbose
def command(
    model: str,
    weights: str | None,
    checkpoint: str | None,
    out: Path | None,
    show_dir: str | None,
    show_score_thr: float | None,
    tta: bool,
    metrics: tuple[str, ...],
    eval_options: dict,
    format_only: bool,
    backend: str | None,
    device: str,
    force: bool,
    allow_partial: bool,
    verbose: bool,
    **run: Any,
) -> None:
    """Evaluate a detector.

    MODEL is a name in the zoo (dcnzoo zoo list), a config or a work directory. CHECKPOINT is a file of
    weights or an exported model: .onnx, .xml or .pt2 (default: the weights of the zoo, or the last in the
    work directory).

    \b
    examples:
      dcnzoo test work_dirs/dcn
      dcnzoo test CONFIG CHECKPOINT --tta --show-dir work_dirs/shown --out predictions.pkl
      dcnzoo test CONFIG model.onnx --backend openvino --eval bbox --eval segm
    """
    as_json = out is not None and out.suffix == ".json"
    if format_only and (metrics or not as_json):
        raise click.UsageError("--format-only: expected --out FILE.json, and no --eval")
    if weights:
        _options.refuse("CHECKPOINT", "checkpoint")
        checkpoint = weights
    if not show_dir:
        _options.refuse("no --show-dir", "show_score_thr")
    exported = checkpoint is not None and checkpoint.endswith(_options.EXPORTED)
    _refuse_of_the_other(exported, run["cfg_options"])
    claim = _options.output_files(force)
    if out is not None:
        for ending in (".bbox.json", ".segm.json") if as_json else (out.suffix,):
            claim(out.with_suffix(ending))

    from dcnzoo.openmmlab import testing
    from dcnzoo.openmmlab.config_errors import config_errors
    from dcnzoo.openmmlab.device import use_device
    from dcnzoo.openmmlab.hooks import SummaryHook
    from dcnzoo.openmmlab.runner import Start, build_runner, load_config
    from dcnzoo.zoo.source import resolve

    source = resolve(model, checkpoint)
    file = source.read_weights()
    cfg = load_config(str(source.config), **run, required=("test_dataloader", "test_cfg", "test_evaluator"))
    with use_device("auto" if exported else device, cfg.launcher), config_errors(cfg):
        testing.set_evaluator(cfg, metrics, eval_options, out if as_json else None, format_only)
        if show_dir is not None:
            testing.draw_detections(cfg, show_dir, show_score_thr)
        if exported:
            testing.use_onnx_file(cfg, str(file), backend, device)
        elif tta:
            testing.use_test_time_augmentation(cfg)
        runner = build_runner(
            cfg,
            allow_partial=allow_partial,
            summary=None if verbose else SummaryHook(),
            start=Start(None if exported else str(file)),
        )
        if show_dir is not None:
            testing.claim_drawings(runner, show_dir, claim)
        if out is not None and not as_json:
            from mmdet.evaluation import DumpDetResults

            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=str(out)))
        runner.test()


def _refuse_of_the_other(exported: bool, cfg_options: dict) -> None:
    """Refuse the options that only weights, or only exported models, use."""
    if not exported:
        _options.refuse("a file of weights", "backend")
        return
    _options.refuse("an exported model", "tta", "allow_partial", "channels_last")
    if any(key.startswith("model.") for key in cfg_options):
        raise click.UsageError("--cfg-options: expected no setting of the model with an exported model")
