"""``dcnzoo infer``, also ``tools/infer.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option
from dcnzoo.utils.files import picture_files, require_file

if TYPE_CHECKING:
    from rich.console import Console

    from dcnzoo.export.picture import Detections


DEMO_MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


def _files(ctx: click.Context, param: click.Parameter, names: Sequence[str]) -> list[str]:
    """Callback: list the files of folders and patterns, before the imports of OpenMMLab."""
    files: list[str] = []
    for name in () if ctx.resilient_parsing else names:
        several = picture_files(name)
        if several is None:
            require_file(name, "image")
        files += [name] if several is None else several
    return files


@click.command(cls=_options.Command)
@click.argument("model", required=False, callback=_options.existing_model)
@click.argument("images", nargs=-1, metavar="IMAGE...", callback=_files, is_eager=True)
@option("--demo", is_flag=True, help=f"Use a generated image and, without MODEL, {DEMO_MODEL}.")
@_options.loading
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
def command(
    model: str | None, images: list[str], demo: bool, out: Path, score_threshold: float, **loading: Any
) -> None:
    """Detect objects in images.

    MODEL is a name in the zoo (dcnzoo zoo list), a config with --checkpoint, a work directory or an exported
    file. IMAGE is a picture, a folder, a pattern or a video.

    Prints a table per image. Writes the images with drawn detections, and one detections.json in COCO's
    format, to one folder.

    \b
    examples:
      dcnzoo infer --demo
      dcnzoo infer faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco street.jpg
      dcnzoo infer work_dirs/fruits photos --score-threshold 0.5 --out found
      dcnzoo infer CONFIG a.jpg b.jpg --checkpoint epoch_12.pth
      dcnzoo infer model.onnx a.jpg
    """
    if not images and not demo:
        raise click.UsageError("expected MODEL IMAGE... or --demo")

    from rich.console import Console

    import dcnzoo
    from dcnzoo.export.picture import Detections
    from dcnzoo.utils.errors import UserError, one_line, user_errors
    from dcnzoo.utils.files import write_text
    from dcnzoo.utils.progress import make_progress

    if demo:
        images = [*images, _demo_image(out / "input")]
    with user_errors():
        detector = dcnzoo.load(model or DEMO_MODEL, score_threshold=score_threshold, **loading)
    console, content, problems = Console(highlight=False, markup=False), None, []
    pictures: list[Path] = []
    hidden = not (console.is_terminal and len(images) > 1)
    with make_progress(console, disable=hidden, transient=True) as progress:
        bar = progress.add_task("detecting", total=len(images), note="")
        for path in progress.track(images, task_id=bar):
            progress.update(bar, note=Path(path).name)
            try:
                with user_errors():
                    results = detector(path)
                    for result in [results] if isinstance(results, Detections) else results:
                        pictures.append(_unused(out / f"{Path(path).stem}.png", pictures))
                        result.save(pictures[-1])
                        content = result.to_coco(content)
                        _show(result, console)
            except UserError as error:
                if str(error).startswith("model: "):
                    raise
                problems.append(f"error: {one_line(error)}")  # this image cannot be read or resized
    if pictures:
        write_text(out / "detections.json", json.dumps(content))
        written = pictures[0] if len(pictures) == 1 else f"{len(pictures)} pictures in {out}"
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


def _unused(path: Path, used: Sequence[Path]) -> Path:
    """Number a name that another image has: ``dog.png``, then ``dog_2.png``."""
    number, name = 1, path
    while name in used:
        number += 1
        name = path.with_stem(f"{path.stem}_{number}")
    return name


def _show(result: Detections, console: Console) -> None:
    from rich.table import Table

    console.print(f"{result.path}: {len(result) or 'none'} found", soft_wrap=True)
    if not len(result):
        return
    table = Table(box=None, pad_edge=True)
    table.add_column("class")
    for head in ("score", "x1", "y1", "x2", "y2"):
        table.add_column(head, justify="right")
    for name, score, box in zip(result.names, result.scores, result.boxes.tolist(), strict=True):
        table.add_row(name, f"{score:.3f}", *(f"{value:.1f}" for value in box))
    console.print(table)
