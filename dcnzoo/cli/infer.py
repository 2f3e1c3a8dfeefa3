"""``dcnzoo infer``."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.cli import _command, _options, _types
from dcnzoo.cli._options import option
from dcnzoo.utils.errors import UserError, show
from dcnzoo.utils.files import numbered, require_file, require_new, write_bytes
from dcnzoo.utils.formats import is_video, picture_files
from dcnzoo.utils.text import columns, counted

if TYPE_CHECKING:
    from dcnzoo.detect.detections import Detections

DEFAULT = Path("work_dirs/infer")
DEMO_IMAGE = "input/shapes.png"  # in the output folder
DEMO_MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
CALLS = ("classes", "max_detections", "batch_size", "tile")  # options of the detector's call
SEVERAL = 20  # on a terminal, more images have a bar and a summary in place of a line each


def _files(ctx: click.Context, param: click.Parameter, names: Sequence[str]) -> list[str]:
    """Callback: list the files of folders and patterns, before the imports of OpenMMLab."""
    files: dict[str, str] = {}  # real path → name; each file is listed once, under its first name
    folder_of = functools.cache(os.path.realpath)
    for name in () if ctx.resilient_parsing else names:
        several = picture_files(name)
        if several is None:
            require_file(name, "images")
        for file in [name] if several is None else several:
            folder, base = os.path.split(os.path.expanduser(file))
            files.setdefault(file if "://" in file else os.path.join(folder_of(folder), base), file)
    return [*files.values()]


@click.command(cls=_command.Command)
@click.argument("model", type=_types.NAME, required=False, callback=_options.existing_model, is_eager=True)
@click.argument("images", type=_types.NAME, nargs=-1, metavar="IMAGE...", callback=_files, is_eager=True)
@option("--demo", is_flag=True, help="Use a generated image and, without MODEL, a small model.")
@option("--out", type=_types.FOLDER, help="Output folder (default: work_dirs/infer, infer_2, …).")
@option(
    "--score-threshold", type=click.FloatRange(0, 1),
    help="Drop lower scores (default: that of the model: 0.5 for R-CNN heads, 0.3 for others).",
)  # fmt: skip
@option("--classes", type=_types.Names(), help="Keep only these: a,b,c or a file with one per line.")
@option("--max-detections", type=_types.POSITIVE, help="Maximum number per image.")
@option("--json", "as_json", is_flag=True, help="Write only detections.json.")
@option("--txt", "as_txt", is_flag=True, help="Write only a text per image: class x y width height score.")
@option("--skip-existing", is_flag=True, help="Skip images whose text of --txt exists.")
@option(
    "--format", "kind", type=click.Choice(["auto", "png", "jpg"]), default="auto",
    help="Format of drawn images; auto: that of the image, if it is JPEG, else PNG.",
)  # fmt: skip
@option("--jpeg", "kind", flag_value="jpg", hidden=True)
@option("--polygons", is_flag=True, help="Write masks into detections.json as polygons.")
@option("--save-video", type=_types.FileName(".mp4", ".avi"), metavar="FILE", help="Draw into this video.")
@option("--tile", type=click.IntRange(min=16), help="Detect in overlapping tiles of this side, in pixels.")
@option("--batch-size", type=_types.POSITIVE, default=1, help="Images at a time.")
@_options.force
@_options.loading
@_options.channels_last
@option("--verbose", is_flag=True, help="Print every detection of every image.")
def command(
    model: str | None, images: list[str], demo: bool, out: Path | None, as_json: bool, as_txt: bool,
    skip_existing: bool, polygons: bool, kind: str, force: bool, save_video: Path | None, verbose: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Detect objects in images.

    MODEL is a name in the zoo (dcnzoo zoo list), a config with --checkpoint, a work directory or an exported
    file. IMAGE is a picture, its address, a folder with its subfolders, a pattern or a video.

    Writes the images with drawn detections, and one detections.json in COCO's format, to one folder; with
    --json or --save-video, no images; with --txt, neither. If an image cannot be read, skips it, and ends
    with status 1.

    \b
    examples:
      dcnzoo infer --demo
      dcnzoo infer faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco street.jpg
      dcnzoo infer work_dirs/fruits photos --score-threshold 0.7 --out found
      dcnzoo infer work_dirs/fruits street.mp4 --save-video drawn.mp4
      dcnzoo infer model.onnx photos --txt --out texts --skip-existing
    """
    if not images and not demo:
        raise click.UsageError("expected MODEL IMAGE... or --demo")
    if as_json or as_txt or save_video:
        _options.refuse("--json, --txt or --save-video", "kind")
    if as_txt and not as_json:
        _options.refuse("--txt", "polygons")
    if skip_existing:
        _require_texts_alone(images, as_txt and out is not None)
    calls = {name: value for name in CALLS if (value := options.pop(name)) is not None}
    model, out = model or DEMO_MODEL, out or numbered(DEFAULT)
    if demo:
        images = [*images, str(require_new("infer", out / DEMO_IMAGE, force=force))]
    from dcnzoo.detect.files import ResultFiles

    files = ResultFiles(
        out, images, "txt" if as_txt else None if as_json or save_video else kind,
        coco=as_json or not as_txt, video=save_video, polygons=polygons, force=force,
        skip_existing=skip_existing,
    )  # fmt: skip
    if not files.missing:
        show(f"{out}: all {counted(len(images), 'images')} have their texts")
        return
    import dcnzoo

    detector = dcnzoo.load(model, **options)
    if demo:
        _draw_demo_image(Path(images[-1]))
    began = time.monotonic()
    # if there is only one image, its error ends the command
    single = len(files.missing) == 1 and not is_video(files.missing[0])
    results: Any = [detector(files.missing[0], **calls)] if single else detector(files.missing, **calls)
    in_detail = verbose or single
    by_line = in_detail or len(images) <= SEVERAL or not sys.stdout.isatty()  # else, there is a bar
    try:
        for result in results:
            files.add(result)
            if by_line:
                seconds = time.monotonic() - began
                best = _best(detector, calls, result) if in_detail and not len(result) else ""
                _print_line(result, seconds, best)
            if in_detail and len(result):
                _print_table(result)
            began = time.monotonic()
    finally:  # also after Ctrl-C
        if written := files.close(detector.classes):
            show(f"written: {written}")
    if files.written > SEVERAL:
        show(f"{counted(files.written, 'images')}: {_counts(files.counts)}")
    if skipped := getattr(results, "skipped", ()):
        raise UserError(f"{counted(len(skipped), 'images')} skipped, for the reasons above")


def _require_texts_alone(images: Sequence[str], is_possible: bool) -> None:
    """Raise UsageError if --skip-existing is used with more than texts: other files would lack the images."""
    if not is_possible:
        raise click.UsageError("--skip-existing: expected --txt and --out, too")
    _options.refuse("--skip-existing", "as_json", "save_video", "demo")
    if videos := [*filter(is_video, images)]:
        raise click.UsageError(f"--skip-existing: expected pictures, got the video {videos[0]}")


def _print_line(result: Detections, seconds: float, best: str) -> None:
    counts = best or _counts(result.names)
    if second := len(result) - len(result.with_one_label()):
        counts += f" (with {counted(second, 'second labels')} of a box, which drawings leave out)"
    show(f"{result.path}: {counts}, {seconds:.2f} s")


def _print_table(result: Detections) -> None:
    rows: list[tuple[str, ...]] = [("class", "score", "x1", "y1", "x2", "y2")]
    for name, score, box in zip(result.names, result.scores, result.boxes.tolist(), strict=True):
        rows.append((name, f"{score:.3f}", *(f"{value:.1f}" for value in box)))
    show(*columns(rows, numbers=True))


def _best(detector: Any, calls: dict[str, Any], result: Detections) -> str:
    """Detect again in an image without objects; return the best score below the threshold."""
    image: Any = result.image  # RGB, also of a detector of grey pictures
    image = image if detector.channels == 3 else image[..., 0]
    best = detector(image, score_threshold=0, **{**calls, "batch_size": 1, "max_detections": 1})
    text = f"none above {detector.score_threshold:g}"
    return f"{text}; the best: {best.names[0]} {best.scores[0]:.2f}" if len(best) else text


def _draw_demo_image(path: Path) -> None:
    """Write a validation image of the demo's data."""
    import cv2

    from dcnzoo.data.shapes import ShapesSpec, draw_image

    image, _ = draw_image(ShapesSpec(), "val", 0)
    write_bytes(path, cv2.imencode(".png", image)[1].tobytes())


def _counts(names: Iterable[str]) -> str:
    """Return how many objects of each class there are: ``3 date, 1 fig``."""
    counts = Counter(names).most_common()
    return ", ".join(f"{count} {name}" for name, count in counts) or "none found"
