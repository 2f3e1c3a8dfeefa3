"""``dcnzoo infer``, also ``tools/infer.py``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option
from dcnzoo.cli._terminal import print_columns
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.files import is_video, picture_files, read_beside, require_file, write_bytes, write_text
from dcnzoo.utils.text import counted

if TYPE_CHECKING:
    from dcnzoo.detect.detections import Detections
    from dcnzoo.detect.video import VideoFile


_LONGEST = 240  # bytes of the name of an output file without ending: systems allow 255
DEMO_MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


def _files(ctx: click.Context, param: click.Parameter, names: Sequence[str]) -> list[str]:
    """Callback: list the files of folders and patterns, before the imports of OpenMMLab."""
    files: list[str] = []
    for name in () if ctx.resilient_parsing else names:
        several = picture_files(name, below=ctx.params.get("kind") is not None)
        if several is None:
            require_file(name, "image")
        files += [name] if several is None else several
    return files


@click.command(cls=_options.Command)
@click.argument("model", type=_options.NAME, required=False, callback=_options.existing_model)
@click.argument("images", type=_options.NAME, nargs=-1, metavar="IMAGE...", callback=_files, is_eager=True)
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
@_options.force
@option(
    "--score-threshold", type=click.FloatRange(0, 1), default=0.3, help="Drop detections with a lower score."
)
@option(
    "--classes", type=_options.Names(), help="Keep only these classes: a,b,c or a file with one per line."
)
@option("--max-detections", type=_options.POSITIVE, help="Maximum number per image.")
@option(
    "--tile",
    type=click.IntRange(min=16),
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
    "detected. IMAGE includes subfolders and text files with paths; the same command continues.",
)
@option(
    "--shard", type=_options.Shard(), metavar="K/N", help="With --format: the K-th of N parts of the images."
)
@option(
    "--ray", "address", metavar="ADDRESS", help="With --format: detect on this Ray cluster, auto or local."
)
@option("--verbose", is_flag=True, help="Print every detection of every image.")
def command(
    model: str | None,
    images: list[str],
    demo: bool,
    out: Path,
    as_json: bool,
    as_txt: bool,
    force: bool,
    score_threshold: float,
    classes: list[str] | None,
    max_detections: int | None,
    tile: int | None,
    batch_size: int,
    save_video: Path | None,
    kind: Literal["jsonl", "parquet"] | None,
    shard: slice | None,
    address: str | None,
    verbose: bool,
    **loading: Any,
) -> None:
    """Detect objects in images.

    MODEL is a name in the zoo (dcnzoo zoo list), a config with --checkpoint, a work directory or an exported
    file. IMAGE is a picture, its http:// or https:// address, a folder, a pattern or a video.

    Prints a line per image, and a table for a single one. Writes the images with drawn detections, and one
    detections.json in COCO's format, to one folder; with --json, --txt or --save-video, only the files of
    these options. If an image cannot be read, skips it, and ends with status 1.

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

    import dcnzoo
    from dcnzoo.detect.detector import Results
    from dcnzoo.detect.video import VideoFile

    options: dict[str, Any] = {"classes": classes, "max_detections": max_detections, "tile": tile}
    options["batch_size"] = batch_size
    if kind:
        _options.refuse("--format", "demo", "as_json", "as_txt", "force", "save_video", "verbose")
        images = images[shard or slice(None)]
        _write_parts(
            str(model), images, out, kind, address, options, {"score_threshold": score_threshold, **loading}
        )
        return
    _options.refuse("no --format", "shard", "address")
    ending = ".txt" if as_txt else "" if as_json or save_video else ".png"
    claim = _options.output_files(force, images)
    if demo:
        images = [*images, _demo_image(claim(out / "input" / "shapes.png"))]
    for name in map(_Names().add, images) if ending else ():  # of a video, the first frame
        claim(out / f"{name}{ending}")
    coco = claim(out / "detections.json") if ending != ".txt" or as_json else None
    video = VideoFile(claim(save_video), images) if save_video else None
    _print_best_threshold(model)
    detector = dcnzoo.load(DEMO_MODEL if model is None else model, score_threshold=score_threshold, **loading)
    results = detector(images[0] if len(images) == 1 else images, **options)
    several, began = isinstance(results, Results), time.monotonic()
    shown: Any = results if several else [results]
    with _Outputs(claim, out, ending, coco, video) as outputs:
        for result in shown:
            print(f"{_line(result)}, {time.monotonic() - began:.2f} s", flush=True)
            if verbose or not several:
                _print_table(result)
            outputs.add(result)
            began = time.monotonic()
    if isinstance(results, Results) and results.skipped:
        sys.exit(1)


def _write_parts(
    model: str,
    images: list[str],
    out: Path,
    kind: Any,
    address: str | None,
    options: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    import dcnzoo
    from dcnzoo.detect.parts import Parts, detect_into

    if videos := list(filter(is_video, images)):
        raise UserError(f"images: expected pictures with --format, got the video {videos[0]}")
    detector = dcnzoo.load(model, **loading)
    settings = {"model": detector.checksum(), "score_threshold": loading["score_threshold"], **options}
    del settings["batch_size"]
    parts = Parts(out, kind, {**settings, "names": detector.classes})
    if address:
        from dcnzoo.ray import detect_on_cluster

        del detector  # the memory is for the workers
        images = [image if "://" in image else os.path.abspath(image) for image in images]
        model = os.path.abspath(model) if os.path.exists(model) else model
        skipped = detect_on_cluster(address, parts, model, images, options, **loading)
    else:
        skipped = detect_into(parts, detector, parts.missing(images), **options)
    print(f"written to {out}; skipped: {len(skipped)} of {counted(len(images), 'images')}")
    if skipped:
        sys.exit(1)


class _Outputs:
    """The files of a call. Leaving the context completes them, also after an interruption of a long video."""

    def __init__(
        self,
        claim: Callable[[Path], Path],
        folder: Path,
        ending: str,  # of the file of each picture; none if empty
        coco: Path | None,
        video: VideoFile | None,
    ) -> None:
        self._claim, self._folder, self._ending = claim, folder, ending
        self._coco, self._video, self._names = coco, video, _Names()
        self._content: dict | None = None
        self._written: list[Path] = []

    def __enter__(self) -> _Outputs:
        return self

    def add(self, result: Detections) -> None:
        if self._video:
            self._video.add(result.draw())
        if self._ending:
            target = self._claim(self._folder / f"{self._names.add(result.path)}{self._ending}")
            if self._ending == ".png":
                result.save(target)
            else:
                write_text(target, _yolo(result))
            self._written.append(target)
        if self._coco:
            self._content = result.to_coco(self._content)

    def __exit__(self, *error: object) -> None:
        if self._video:
            self._written += self._video.close()
        if self._coco and self._content is not None:
            write_text(self._coco, json.dumps(self._content))
            self._written.append(self._coco)
        if self._written:
            several = f"{counted(len(self._written), 'files')} in {self._folder}"
            print(f"written: {' and '.join(map(str, self._written)) if len(self._written) < 3 else several}")


def _demo_image(path: Path) -> str:
    """Write a validation image of the demo's data; return its path."""
    import cv2

    from dcnzoo.data.shapes import ShapesSpec, draw_image

    image, _ = draw_image(ShapesSpec(), "val", 0)
    write_bytes(path, cv2.imencode(".png", image)[1].tobytes())
    return str(path)


class _Names(Counter):
    """The names of the output files, without ending."""

    def add(self, image: str) -> str:
        """Return the name for an image, with a number if another image has it: ``dog``, then ``dog_2``."""
        stem = Path(image).stem
        while len(os.fsencode(stem)) > _LONGEST:
            stem = stem[:-1]
        name = stem
        while self[name]:
            self[stem] += 1
            name = f"{stem}_{self[stem]}"
        self[name] += 1
        return name


def _yolo(result: Detections) -> str:
    """Return a line per object: its label, its centre, width and height between 0 and 1, and its score."""
    assert result.image is not None  # of a call
    height, width = result.image.shape[:2]
    lines = []
    for label, score, (x1, y1, x2, y2) in zip(result.labels, result.scores, result.boxes, strict=True):
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height, score)
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)


def _line(result: Detections) -> str:
    """Return the picture and what was found on it: ``street.jpg: 3 date, 1 fig``."""
    counts = Counter(result.names).most_common()
    text = ", ".join(f"{count} {printable(name)}" for name, count in counts)
    return f"{printable(result.path)}: {text or 'none found'}"


def _print_best_threshold(model: str | None) -> None:
    """Print the threshold with the best F1, if the work directory has a report."""

    def describe(text: str) -> str:
        run = json.loads(text)["runs"][0]
        best = f"{run['f1']:.2f} with --score-threshold {run['threshold']:.2f}"
        return f"best F1 on the validation images: {best}"

    if model and (line := read_beside(Path(model, "report.json"), describe)):
        print(line)


def _print_table(result: Detections) -> None:
    rows = [
        (printable(name), f"{score:.3f}", *(f"{value:.1f}" for value in box))
        for name, score, box in zip(result.names, result.scores, result.boxes.tolist(), strict=True)
    ]
    if rows:
        print_columns([("class", "score", "x1", "y1", "x2", "y2"), *rows], numbers=True)
