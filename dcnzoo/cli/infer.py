"""``dcnzoo infer``."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option
from dcnzoo.cli._terminal import print_columns
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.files import numbered, require_file, require_new, write_bytes
from dcnzoo.utils.formats import KINDS, is_video, picture_files
from dcnzoo.utils.marks import mark, model_name
from dcnzoo.utils.text import counted

if TYPE_CHECKING:
    from dcnzoo.detect.detections import Detections
    from dcnzoo.detect.rows import Rows
    from dcnzoo.detect.views import Views


DEFAULT = Path("work_dirs/infer")
DEMO_IMAGE = "input/shapes.png"  # in the output folder
CALLS = ("classes", "max_detections", "tile", "batch_size")  # options of the detector's call
NOT_COMPARED = ("out", "force", "verbose")  # parameters with which another command is the same
SEVERAL = 20  # images; on a terminal, more have a bar and a summary in place of a line each
DEMO_MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


def _files(ctx: click.Context, param: click.Parameter, names: Sequence[str]) -> list[str]:
    """Callback: list the files of folders and patterns, before the imports of OpenMMLab."""
    files: dict[str, str] = {}  # each once, under its first name
    folder_of = functools.cache(os.path.realpath)
    for name in () if ctx.resilient_parsing else names:
        several = picture_files(name, lists=ctx.params.get("kind") is not None)
        if several is None:
            require_file(name, "image")
            kind = KINDS.get(Path(name).suffix.lower(), "a picture")
            if kind not in ("a picture", "a video") and "://" not in name:
                raise UserError(f"image: expected a picture, a video or a folder, got {kind}, {name}")
        for file in [name] if several is None else several:
            folder, base = os.path.split(os.path.expanduser(file))
            files.setdefault(file if "://" in file else os.path.join(folder_of(folder), base), file)
    return [*files.values()]


@click.command(cls=_options.Command)
@click.argument("model", type=_options.MODEL, required=False, callback=_options.existing_model, is_eager=True)
@click.argument("images", type=_options.NAME, nargs=-1, metavar="IMAGE...", callback=_files, is_eager=True)
@option("--demo", is_flag=True, help=f"Use a generated image and, without MODEL, {DEMO_MODEL}.")
@_options.loading
@_options.channels_last
@option(
    "--out",
    type=_options.FOLDER,
    help="Output folder (default: work_dirs/infer; infer_2 if it has other results, and so on).",
)
@option("--json", "as_json", is_flag=True, help="Write only detections.json.")
@option(
    "--txt",
    "as_txt",
    is_flag=True,
    help="Write only a text file per image, in YOLO's format: class x y width height score.",
)
@option("--polygons", is_flag=True, help="Write masks into detections.json as polygons.")
@option("--jpeg", is_flag=True, help="Draw into JPEG files, which are smaller than PNG files.")
@_options.force
@option(
    "--score-threshold",
    type=_options.FloatRange(0, 1),
    default=0.3,
    help="Drop detections with a lower score.",
)
@option(
    "--classes", type=_options.Names(), help="Keep only these classes: a,b,c or a file with one per line."
)
@option("--max-detections", type=_options.POSITIVE, help="Maximum number per image.")
@option(
    "--tile",
    type=_options.IntRange(min=16),
    help="Detect in overlapping tiles of this side in pixels, for pictures that are much larger than those "
    "of the training.",
)
@option("--batch-size", type=_options.POSITIVE, default=1, help="Images at a time.")
@option(
    "--save-video",
    type=_options.FileName(".mp4", ".avi"),
    metavar="FILE",
    help="Draw a video into this video.",
)
@option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "parquet"]),
    is_eager=True,
    help="For many pictures: write only rows of detections, to files in the output folder, while they are "
    "detected. IMAGE may be a text file with paths, too; the same command continues.",
)
@option(
    "--shard",
    type=_options.Shard(),
    metavar="K/N",
    help="With --format: the K-th of N parts of the images, by a checksum of their paths.",
)
@option(
    "--ray", "address", metavar="ADDRESS", help="With --format: detect on this Ray cluster, auto or local."
)
@option("--verbose", is_flag=True, help="Print every detection of every image.")
def command(
    model: str | None, images: list[str], demo: bool, out: Path | None, as_json: bool, as_txt: bool,
    polygons: bool, jpeg: bool, force: bool, save_video: Path | None, shard: tuple[int, int] | None,
    kind: Literal["jsonl", "parquet"] | None, address: str | None, verbose: bool, **options: Any,
) -> None:  # fmt: skip
    """Detect objects in images.

    MODEL is a name in the zoo (dcnzoo zoo list), a config with --checkpoint, a work directory or an exported
    file. IMAGE is a picture, its http:// or https:// address, a folder with its subfolders, a pattern or a
    video.

    Prints a line per image, and a table for a single one. Writes the images with drawn detections, and one
    detections.json in COCO's format, to one folder; with --json or --save-video, no images; with --txt,
    neither. Names of files are relative to the common folder of the images. If an image cannot be read,
    skips it, and ends with status 1. After a kill, the same command continues.

    \b
    examples:
      dcnzoo infer --demo
      dcnzoo infer faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco street.jpg
      dcnzoo infer work_dirs/fruits photos --score-threshold 0.5 --out found
      dcnzoo infer work_dirs/fruits field.tif --tile 1024 --json
      dcnzoo infer work_dirs/fruits street.mp4 --save-video drawn.mp4
      dcnzoo infer model.onnx a.jpg
    """
    if not images and not demo:
        raise click.UsageError("expected MODEL IMAGE... or --demo")
    calls = {name: options.pop(name) for name in CALLS}
    loading = options
    if kind:
        names = ("demo", "as_json", "as_txt", "polygons", "jpeg", "force", "save_video", "verbose")
        _options.refuse("--format", *names)
        _write_rows(str(model), images, shard, out, kind, address, calls, loading)
        return
    if as_json or as_txt or save_video:
        _options.refuse("--json, --txt or --save-video", "jpeg")
    if as_txt and not as_json:
        _options.refuse("--txt", "polygons")
    model = model or DEMO_MODEL
    from dcnzoo.detect.views import Views

    views: Any = functools.partial(
        Views, ending=".txt" if as_txt else "" if as_json or save_video else ".jpg" if jpeg else ".png",
        coco=as_json or not as_txt, video=save_video, polygons=polygons,
        mark=mark("detections", model_name(model, loading["checkpoint"])), force=force,
    )  # fmt: skip
    _write_files(model, images, demo, out, views, calls, loading)


def _settings(detector: Any, calls: dict[str, Any], loading: dict[str, Any]) -> dict[str, Any]:
    """Return what all results in a folder have in common."""
    chosen = {name: value for name, value in calls.items() if name != "batch_size"}
    settings = {"model": detector.checksum(), **chosen, "names": detector.classes}
    return settings | {name: loading[name] for name in ("score_threshold", "cfg_options")}


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, default=str, sort_keys=True).encode()).hexdigest()[:16]


def _write_rows(
    model: str,
    images: list[str],
    shard: tuple[int, int] | None,
    out: Path | None,
    kind: Literal["jsonl", "parquet"],
    address: str | None,
    calls: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    import dcnzoo
    from dcnzoo.detect.rows import Rows, continues, shard_of, write_results

    if videos := list(filter(is_video, images)):
        raise UserError(f"images: expected pictures with --format, got the video {videos[0]}")
    detector = dcnzoo.load(model, **loading)
    settings = _settings(detector, calls, loading)
    is_relative = any(not os.path.isabs(image) and "://" not in image for image in images)
    settings["folder"] = os.getcwd() if is_relative and not address else None  # of the paths in the rows
    out = out or numbered(DEFAULT, lambda folder: continues(folder, kind, settings))
    rows = Rows(out, kind, settings)
    job = "{}-of-{}".format(*shard) if shard else _digest(images)
    if shard:
        images = [image for image in images if shard_of(image, shard[1]) == shard[0]]
    with rows.locked(f"-{job}"):
        if address:
            from dcnzoo.ray import detect_on_cluster

            del detector  # the memory is for the workers
            paths = [os.path.abspath(os.path.expanduser(image)) for image in images]
            images = [image if "://" in image else path for image, path in zip(images, paths, strict=True)]
            model, loading["checkpoint"] = (
                os.path.abspath(name) if name and os.path.exists(name) else name
                for name in (model, loading["checkpoint"])
            )
            detect_on_cluster(address, rows, model, images, calls, settings["model"], **loading)
        else:
            write_results(rows, detector(rows.missing(images), **calls))
    failures = rows.failures(images)  # also those of an earlier run
    print(printable(f"written to {out}; skipped: {failures} of {counted(len(images), 'images')}"))
    sys.exit(bool(failures))


def _write_files(
    model: str,
    images: list[str],
    demo: bool,
    out: Path | None,
    views: Callable[[Path, list[str]], Views],
    calls: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Write rows to a hidden folder, which the same command continues after a kill, then the files."""

    def files_in(folder: Path) -> tuple[list[str], Views]:
        every = [*images, str(folder / DEMO_IMAGE)] if demo else images
        return every, views(folder, every)

    every, files = files_in(out or numbered(DEFAULT))  # before the work

    import dcnzoo
    from dcnzoo.detect.rows import Rows
    from dcnzoo.detect.views import UNFINISHED

    detector = dcnzoo.load(model, **loading)
    parameters = click.get_current_context().params
    settings = {**parameters, "images": images, **dict.fromkeys(NOT_COMPARED)}
    unfinished = f"{UNFINISHED}{_digest(detector.checksum(), os.getcwd(), settings)}"
    if out is None:
        out = numbered(DEFAULT, lambda folder: (folder / unfinished).exists())
        every, files = files_in(out)
    if demo:
        _draw_demo_image(Path(every[-1]))
    rows = Rows(out / unfinished)
    files.settings = _settings(detector, calls, loading)
    with rows.locked():
        if parameters["save_video"] or any(map(is_video, every)):  # videos are written from their start
            rows.remove()
        skipped = _detect(detector, every, rows, files, calls, parameters["verbose"])
        rows.remove()
    if others := files.others():
        text = f"{counted(others, 'other commands')} did not finish; their rows stay in {out}"
        print(printable(text))
    if files.images > SEVERAL:
        print(f"{counted(files.images, 'images')}: {_counts(files.counts)}")
    if files.errors or skipped:
        sys.exit(1)


def _detect(
    detector: Any, images: list[str], rows: Rows, files: Views, calls: dict[str, Any], verbose: bool
) -> list[Any]:
    """Detect the objects in pictures without a row, then write the files; return the skipped pictures."""
    from dcnzoo.detect.detector import Results
    from dcnzoo.detect.rows import write_results

    undetected = {*rows.missing(images, changed=True)}
    missing = [image for image in images if image in undetected or files.lacks(image)]
    if done := len(images) - len(missing):
        print(f"continued: {done} of {counted(len(images), 'images')} have been detected")
    began = time.monotonic()
    results = single = detector(images[0] if len(images) == len(missing) == 1 else missing, **calls)
    if not isinstance(results, Results):  # an error of the only image ends the command
        results = Results(iter([single]), [])

    def show(shown: Detections) -> None:
        nonlocal began
        seconds = f"{time.monotonic() - began:.2f} s"
        print(f"{printable(shown.path)}: {_counts(shown.names)}, {seconds}", flush=True)
        if verbose or shown is single:
            _print_table(shown)
        began = time.monotonic()

    has_lines = verbose or len(images) <= SEVERAL or not sys.stdout.isatty()
    interruption = None
    try:
        write_results(rows, results, files.draw, show if has_lines else None)
    except KeyboardInterrupt as error:
        interruption = error  # then, pictures may have no row
    unopened = {skipped.path for skipped in results.skipped if not skipped.is_opened}
    if written := files.finish(rows.in_order(images, None if interruption else unopened)):
        print(printable(f"written: {written}"))
    if interruption:
        raise interruption
    return results.skipped


def _draw_demo_image(path: Path) -> None:
    """Write a validation image of the demo's data."""
    import cv2

    from dcnzoo.data.shapes import ShapesSpec, draw_image

    image, _ = draw_image(ShapesSpec(), "val", 0)
    content = cv2.imencode(".png", image)[1].tobytes()
    require_new("infer", path, own=lambda file: file.read_bytes() == content)
    write_bytes(path, content)


def _counts(names: Iterable[str]) -> str:
    """Return how many objects of each class there are: ``3 date, 1 fig``."""
    counts = Counter(names).most_common()
    return ", ".join(f"{count} {printable(name)}" for name, count in counts) or "none found"


def _print_table(result: Detections) -> None:
    rows = [
        (printable(name), f"{score:.3f}", *(f"{value:.1f}" for value in box))
        for name, score, box in zip(result.names, result.scores, result.boxes.tolist(), strict=True)
    ]
    if rows:
        print_columns([("class", "score", "x1", "y1", "x2", "y2"), *rows], numbers=True)
