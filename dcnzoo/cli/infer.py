"""``dcnzoo infer``, also ``tools/infer.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option

if TYPE_CHECKING:
    from mmengine.structures import InstanceData
    from rich.console import Console


DEMO_MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


@click.command(cls=_options.Command)
@click.argument("images", nargs=-1, metavar="IMAGE...", callback=_options.existing)
@option("--demo", is_flag=True, help=f"Use a generated image and, without --model, {DEMO_MODEL}.")
@_options.optional_model
@option(
    "--out",
    type=_options.FOLDER,
    default="work_dirs/infer",
    help="Output folder for images with drawn detections, and detections.json.",
)
@option(
    "--score-threshold",
    type=click.FloatRange(0, 1),
    default=0.3,
    help="Drop detections with a lower score.",
)
def command(images: tuple[str, ...], demo: bool, out: Path, score_threshold: float, **model: object) -> None:
    """Detect objects in images.

    Prints a table per image. Writes the images with drawn detections, and one detections.json in COCO's
    format, to one folder.

    \b
    examples:
      dcnzoo infer --demo
      dcnzoo infer street.jpg --model faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco
      dcnzoo infer a.jpg b.jpg --model CONFIG --checkpoint epoch_12.pth --score-threshold 0.5 --out found
    """
    if not images and not demo:
        raise click.UsageError("expected IMAGE... or --demo")
    if model["model"] is None and not demo:
        raise click.UsageError("--model: expected the name of a model or a config file, got none")
    model["model"] = model["model"] or DEMO_MODEL

    from rich.console import Console

    import dcnzoo.openmmlab  # noqa: F401  before mmengine
    from dcnzoo.report import detections
    from dcnzoo.utils.errors import UserError, one_line, user_errors
    from dcnzoo.utils.files import write_bytes, write_text
    from dcnzoo.utils.progress import make_progress

    if demo:
        images = (*images, _demo_image(out / "input"))
    detector = _options.load_model(**model)
    import torch
    from mmdet.apis import inference_detector
    from mmdet.visualization.palette import get_palette

    from dcnzoo.openmmlab.datasets.images import resizing

    if next(detector.parameters()).device.type == "cpu":
        detector.to(memory_format=torch.channels_last)  # faster there
    classes = detector.dataset_meta["classes"]
    palette = get_palette(detector.dataset_meta["palette"], len(classes))
    console, file = Console(highlight=False, markup=False), detections.CocoDetections(classes)
    pictures, problems = detections.picture_names(images), []
    hidden = not (console.is_terminal and len(images) > 1)
    with make_progress(console, disable=hidden, transient=True) as progress:
        bar = progress.add_task("detecting", total=len(images), note="")
        for path, picture in progress.track(list(zip(images, pictures, strict=True)), task_id=bar):
            progress.update(bar, note=Path(path).name)
            with user_errors():
                try:
                    image = detections.read_image(path)
                    with resizing(path):
                        sample = inference_detector(detector, path)
                except UserError as error:  # this image cannot be read or resized
                    problems.append(f"error: {one_line(error)}")
                    continue
            if "pred_instances" not in sample:
                raise UserError(
                    f"model: expected a detector, got a model that predicts {', '.join(sample.keys())}"
                )
            found = sample.pred_instances.cpu()
            found = found[found.scores >= score_threshold]
            found = found[found.scores.argsort(descending=True)]
            file.add(path, sample.ori_shape, found)
            write_bytes(out / picture, detections.draw_detections(image, found, classes, palette))
            _show(path, found, classes, console)
    if number := len(images) - len(problems):
        write_text(out / "detections.json", json.dumps(file.content))
        written = out / pictures[0] if len(images) == 1 else f"{number} picture{'s' * (number > 1)} in {out}"
        console.print(f"written: {written} and {out / 'detections.json'}", soft_wrap=True)
    if problems:
        sys.exit("\n".join(problems))


def _demo_image(folder: Path) -> str:
    """Write a validation image of the demo's data; return its path."""
    import cv2

    from dcnzoo.data.shapes import ShapesSpec, draw_image
    from dcnzoo.utils.files import write_bytes

    image, _ = draw_image(ShapesSpec(), "val", 0)
    write_bytes(folder / "shapes.png", cv2.imencode(".png", image)[1].tobytes())
    return str(folder / "shapes.png")


def _show(path: str, found: InstanceData, classes: Sequence[str], console: Console) -> None:
    from rich.table import Table

    from dcnzoo.report.detections import rows

    count = len(found) or "none"
    console.print(f"{path}: {count} found", soft_wrap=True)
    if not len(found):
        return
    table = Table(box=None, pad_edge=True)
    table.add_column("class")
    for head in ("score", "x1", "y1", "x2", "y2"):
        table.add_column(head, justify="right")
    for label, score, box in rows(found):
        table.add_row(classes[label], f"{score:.3f}", *(f"{value:.1f}" for value in box))
    console.print(table)
