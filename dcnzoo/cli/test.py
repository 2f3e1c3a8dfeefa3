"""``dcnzoo test``, also ``tools/test.py`` and ``tools/deployment/test.py``."""

from typing import Any

import click

from dcnzoo.cli import _command, _options, _types
from dcnzoo.cli._options import option

METRICS = ("bbox", "segm", "proposal")  # kinds of MMDetection's CocoMetric


@click.command(cls=_command.Command)
@_options.model
@_options.checkpoint_argument
@option(
    "--data", type=_types.DATA, metavar="PATH",
    help="Evaluate on these annotated pictures, by the names of their classes (formats: train --help).",
)  # fmt: skip
@option(
    "--out", type=_types.FileName(".pkl", ".pickle", ".json"), metavar="FILE",
    help="Write the predictions: .pkl, or .json for COCO's format.",
)  # fmt: skip
@option("--show-dir", type=_types.NAME, metavar="FOLDER", help="Write images with drawn detections.")
@option("--show-score-thr", type=float, help="Draw detections above this score (default: 0.3).")
@option("--tta", is_flag=True, help="Merge the detections of the image and its mirror image.")
@option(
    "--eval", "metrics", cls=_command.Several, accepts=METRICS.__contains__, type=click.Choice(METRICS),
    metavar="METRIC", help="bbox, segm or proposal (default: the config's).",
)  # fmt: skip
@option("--format-only", is_flag=True, help="Write --out FILE.json without evaluating it.")
@_options.cfg_options
@_options.work_dir
@_options.force
@_options.backend
@_options.runner
@_options.reading
@_options.unsafe_load
def command(**options: Any) -> None:
    """Evaluate a detector.

    MODEL is a name in the zoo (dcnzoo zoo list), a config or a work directory. CHECKPOINT is a file of
    weights, best or last of a work directory, or an exported model, .onnx or .xml (default: the weights of
    the zoo, or the best of the work directory).

    \b
    examples:
      dcnzoo test work_dirs/dcn
      dcnzoo test work_dirs/fruits --data more_fruits/
      dcnzoo test CONFIG CHECKPOINT --tta --show-dir work_dirs/shown --out predictions.pkl
      dcnzoo test CONFIG model.onnx --backend openvino --eval bbox segm
    """
    from dcnzoo.zoo.testing import test

    test(**options)
