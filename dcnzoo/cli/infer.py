"""``dcnzoo infer``, also ``tools/infer.py``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option
from dcnzoo.cli._terminal import print_columns
from dcnzoo.utils.errors import printable
from dcnzoo.utils.files import picture_files, require_file

if TYPE_CHECKING:
    from dcnzoo.detect.detections import Detections


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
@_options.channels_last
@option("--out", type=_options.FOLDER, default="work_dirs/infer", help="Output folder.")
@option("--json", "as_json", is_flag=True, help="Write only detections.json.")
@option(
    "--txt",
    "as_txt",
    is_flag=True,
    help="Write only a text file per image, in YOLO's format: class x y width height score.",
)
@option(
    "--score-threshold", type=click.FloatRange(0, 1), default=0.3, help="Drop detections with a lower score."
)
@option(
    "--classes", type=_options.Names(), help="Keep only these classes: a,b,c or a file with one per line."
)
@option("--max-detections", type=click.IntRange(min=1), help="Maximum number per image.")
@option(
    "--tile",
    type=click.IntRange(min=16),
    help="Detect in overlapping tiles of this side in pixels, for pictures that are much larger than those "
    "of the training.",
)
def command(
    model: str | None,
    images: list[str],
    demo: bool,
    out: Path,
    as_json: bool,
    as_txt: bool,
    score_threshold: float,
    classes: list[str] | None,
    max_detections: int | None,
    tile: int | None,
    **loading: Any,
) -> None:
    """Detect objects in images.

    MODEL is a name in the zoo (dcnzoo zoo list), a config with --checkpoint, a work directory or an exported
    file. IMAGE is a picture, a folder, a pattern or a video.

    Prints a table per image. Writes the images with drawn detections, and one detections.json in COCO's
    format, to one folder; with --json or --txt, only the files of these options. If an image cannot be read,
    skips it, and ends with status 1.

    \b
    examples:
      dcnzoo infer --demo
      dcnzoo infer faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco street.jpg
      dcnzoo infer work_dirs/fruits photos --score-threshold 0.5 --out found
      dcnzoo infer work_dirs/fruits field.tif --tile 1024 --json
      dcnzoo infer model.onnx a.jpg
    """
    if not images and not demo:
        raise click.UsageError("expected MODEL IMAGE... or --demo")

    import dcnzoo
    from dcnzoo.detect.detector import Results
    from dcnzoo.utils.errors import user_errors
    from dcnzoo.utils.files import write_text

    draw = not (as_json or as_txt)
    if demo:
        images = [*images, _demo_image(out / "input")]
    taken, content, written = Counter(), None, []
    with user_errors():
        detector = dcnzoo.load(model or DEMO_MODEL, score_threshold=score_threshold, **loading)
        options = {"classes": classes, "max_detections": max_detections, "tile": tile}
        results = detector(images[0] if len(images) == 1 else images, **options)
        several = isinstance(results, Results)
        for result in results if several else [results]:
            _show(result)
            name = _unused(Path(result.path).stem, taken)
            if draw:
                written.append(out / f"{name}.png")
                result.save(written[-1])
            if as_txt:
                written.append(out / f"{name}.txt")
                write_text(written[-1], _yolo(result))
            if draw or as_json:
                content = result.to_coco(content)
    if content is not None:
        written.append(out / "detections.json")
        write_text(written[-1], json.dumps(content))
    if written:
        many = f"{len(written)} files in {out}"
        print(f"written: {' and '.join(map(str, written)) if len(written) < 3 else many}")
    if several and results.skipped:
        sys.exit(1)


def _demo_image(folder: Path) -> str:
    """Write a validation image of the demo's data; return its path."""
    import cv2

    from dcnzoo.data.shapes import ShapesSpec, draw_image
    from dcnzoo.utils.files import write_bytes

    image, _ = draw_image(ShapesSpec(), "val", 0)
    write_bytes(folder / "shapes.png", cv2.imencode(".png", image)[1].tobytes())
    return str(folder / "shapes.png")


def _unused(stem: str, taken: Counter[str]) -> str:
    """Return the name of an output file, with a number if another image has it: ``dog``, then ``dog_2``."""
    name = stem
    while taken[name]:
        taken[stem] += 1
        name = f"{stem}_{taken[stem]}"
    taken[name] += 1
    return name


def _yolo(result: Detections) -> str:
    """Return a line per object: its label, its centre, width and height between 0 and 1, and its score."""
    height, width = result.image.shape[:2]
    lines = []
    for label, score, (x1, y1, x2, y2) in zip(result.labels, result.scores, result.boxes, strict=True):
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height, score)
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)


def _show(result: Detections) -> None:
    print(f"{printable(result.path)}: {len(result) or 'none'} found")
    rows = [
        (printable(name), f"{score:.3f}", *(f"{value:.1f}" for value in box))
        for name, score, box in zip(result.names, result.scores, result.boxes.tolist(), strict=True)
    ]
    if rows:
        print_columns([("class", "score", "x1", "y1", "x2", "y2"), *rows], numbers=True)
