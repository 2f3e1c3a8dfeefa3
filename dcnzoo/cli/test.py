"""``dcnzoo test``, also ``tools/test.py`` and ``tools/deployment/test.py``."""

from __future__ import annotations

from pathlib import Path

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option


@click.command(cls=_options.Command)
@_options.runner
@click.argument("checkpoint", type=click.Path())
@option(
    "--out",
    type=_options.FileName(".pkl", ".pickle", ".json"),
    metavar="FILE",
    help="Write the predictions: .pkl, or .json for COCO's format.",
)
@option("--show-dir", metavar="FOLDER", help="Write images with drawn detections to this folder.")
@option("--show-score-thr", type=float, help="Draw detections above this score (default: 0.3).")
@option("--tta", is_flag=True, help="Merge the detections of the image and its mirror image.")
@option(
    "--eval",
    "metrics",
    several=True,
    metavar="METRIC...",
    help="Metrics: bbox, segm or proposal (default: the config's).",
)
@_options.settings("--eval-options", "Settings of the evaluator, such as classwise=True.")
@option("--format-only", is_flag=True, help="Write --out FILE.json without evaluating it.")
@_options.backend("Runtime for an exported model.")
@option("--device", default="cpu", help="Device for an exported model: cpu or cuda.")
@_options.allow_partial
def command(
    checkpoint: str,
    out: Path | None,
    show_dir: str | None,
    show_score_thr: float | None,
    tta: bool,
    metrics: tuple[str, ...],
    eval_options: dict,
    format_only: bool,
    backend: str,
    device: str,
    allow_partial: bool,
    **run: object,
) -> None:
    """Evaluate a detector.

    CHECKPOINT is a file of weights or an exported model: .onnx, .xml with --backend openvino, or
    .pt2 with --backend aotinductor.

    \b
    examples:
      dcnzoo test work_dirs/dcn/config.py work_dirs/dcn/epoch_12.pth
      dcnzoo test CONFIG CHECKPOINT --tta --show-dir work_dirs/shown --out predictions.pkl
      dcnzoo test CONFIG model.onnx --backend openvino --eval bbox segm
    """
    as_json = out is not None and out.suffix == ".json"
    if format_only and (metrics or not as_json):
        raise click.UsageError("--format-only: expected --out FILE.json, and no --eval")
    exported = checkpoint.endswith((".onnx", ".xml", ".pt2"))
    if exported and tta:
        raise click.UsageError("--tta: expected a file of weights, got an exported model")

    from dcnzoo.openmmlab import testing
    from dcnzoo.openmmlab.runner import build_runner, load_config
    from dcnzoo.utils.errors import user_errors
    from dcnzoo.utils.files import require_file

    with user_errors():
        cfg = load_config(**run, required=("test_dataloader", "test_cfg", "test_evaluator"))
        require_file(checkpoint, "model" if exported else "checkpoint")
        cfg.load_from, cfg.resume = checkpoint, False  # the config of a resumed run has resume=True
        testing.set_evaluator(cfg, metrics, eval_options, out if as_json else None, format_only)
        if show_dir is not None:
            testing.draw_detections(cfg, show_dir, show_score_thr)
        if exported:
            testing.use_onnx_file(cfg, checkpoint, backend, device)
        elif tta:
            testing.use_test_time_augmentation(cfg)
        runner = build_runner(cfg, allow_partial=allow_partial)
        metrics = runner.test_evaluator.metrics  # builds it here, where errors are reported as user errors
        if out is not None and not as_json:
            from mmdet.evaluation import DumpDetResults

            metrics.append(DumpDetResults(out_file_path=str(out)))
    runner.test()
