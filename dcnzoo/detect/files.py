"""The files of ``dcnzoo infer``: drawn pictures or texts in YOLO's format, a video, a COCO file."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.video import VideoFile
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import require_new, write_bytes, write_text
from dcnzoo.utils.formats import is_video
from dcnzoo.utils.text import counted

CLASSES = "classes.txt"
DRAWINGS = {".png": "PNG", ".jpg": "JPEG"}  # ending → Pillow's name of the format


class ResultFiles:
    """Writes each result as soon as it is detected, and the COCO file at the end.

    Args:
        folder: the folder of the files.
        images: the images of the detector's call.
        kind: the file of each image and frame: ``"png"`` or ``"jpg"``, a drawn picture; ``"auto"``, a drawn
            picture, .jpg for a JPEG file and .png for others; ``"txt"``, a text; None, no file.
        coco, video: whether to write a COCO file; the path of a video, None: no video.
        polygons: write masks into the COCO file as polygons, not in run-length encoding.
        force: replace files that exist, but never one of ``images``.
        skip_existing: with ``"txt"``: :attr:`missing` has only the images whose text does not exist.

    Attributes:
        missing: the images to detect.
        written: number of results.
        counts: number of objects of each class.

    Raises:
        UserError: a file exists; or, with ``"txt"``, two images have one name.
    """

    def __init__(
        self, folder: Path, images: Sequence[str], kind: str | None, *, coco: bool, video: Path | None,
        polygons: bool, force: bool, skip_existing: bool = False,
    ) -> None:  # fmt: skip
        self._folder, self._kind = folder, kind
        self._inputs: dict[str, list[str]] = {}  # by their names without ending
        for image in images:
            self._inputs.setdefault(Path(image).stem, []).append(image)
        self._polygons, self._force = polygons, force
        self._names = OutputNames(images)
        if kind == "txt":
            self._names.require_apart(images)
        paths = {image: self._path(_first(image)) for image in images}
        self.missing = [image for image in images if not (skip_existing and paths[image].exists())]
        self._coco = folder / "detections.json" if coco else None
        self._checked = dict.fromkeys(paths[image] for image in self.missing if kind)
        others = (self._coco, video, folder / CLASSES if kind == "txt" and not skip_existing else None)
        if files := [*self._checked, *filter(None, others)]:
            require_new("infer", *files, force=force, inputs=images)
        self._video = VideoFile(video, images) if video else None
        self._content: dict[str, Any] | None = None  # of the COCO file
        self.counts: Counter[str] = Counter()
        self.written = 0

    def begin(self, classes: Sequence[str]) -> None:
        """Write the names of the labels beside the texts.

        Raises:
            UserError: with ``skip_existing``, there are other names, which belong to the texts that exist.
        """
        if self._kind == "txt":
            file, content = self._folder / CLASSES, "".join(f"{name}\n" for name in classes).encode()
            if not self._force and file.exists() and file.read_bytes() != content:
                problem = "expected the classes of the detector, got others; force=True replaces them"
                raise UserError(f"infer: {file}: {problem}")
            write_bytes(file, content)

    def add(self, result: Detections) -> None:
        """Write the file of an image or frame.

        Raises:
            UserError: it is a frame after the first of a video, and its file exists.
        """
        from dcnzoo.detect.drawing import encoded

        if self._kind == "txt":
            write_bytes(self._new_path(result.path), _yolo(result))
        is_drawn = self._kind not in ("txt", None)
        if is_drawn or self._video:
            picture = result.draw()
            if is_drawn:
                path = self._new_path(result.path)
                write_bytes(path, encoded(picture, DRAWINGS[path.suffix]))
            if self._video:
                self._video.add(picture)
        self.written += 1
        self.counts.update(result.names)
        if self._coco:
            self._content = result.to_coco(self._content, polygons=self._polygons)
            self._content["images"][-1]["file_name"] = self._names.relative(result.path)

    def close(self) -> str:
        """Finish the files, the COCO file first: the video may be incomplete. Return a text that lists them.

        Raises:
            UserError: a file cannot be written, or the video is not complete.
        """
        texts = []
        if self._coco and self._content:
            write_text(self._coco, json.dumps(self._content))
            texts.append(str(self._coco))
        if self._video is not None:
            texts = [*map(str, self._video.close()), *texts]
        if self._kind and self.written:
            texts.append(f"{counted(self.written, 'files')} in {self._folder}")
        return " and ".join(texts)

    def _new_path(self, image: str) -> Path:
        """Return the file of an image or frame; raise UserError if it is a frame's and exists."""
        path = self._path(image)
        if path not in self._checked:
            require_new("infer", path, force=self._force, inputs=self._inputs.get(path.stem, ()))
        return path

    def _path(self, image: str) -> Path:
        """Return the file of an image or frame: its drawing or its text."""
        ending = self._kind
        if ending == "auto":
            path = urlsplit(image).path if "://" in image else image
            ending = "jpg" if path.lower().endswith((".jpg", ".jpeg")) else "png"
        return self._folder / f"{self._names.of(image)}.{ending}"


class OutputNames:
    """The names of the output files of images, without ending, below their common folder.

    ``dog`` for ``photos/dog.jpg``, ``dog_2`` for ``photos/dog.png``, ``a/dog`` and ``b/dog`` for pictures in
    two folders. The images, and the first frames of videos, are named in their order, the other frames later.
    """

    def __init__(self, images: Iterable[str]) -> None:
        self._names: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()  # name → the last number that was added to it; 0: it is free
        folders = {os.path.dirname(image) for image in images if "://" not in image}
        absolute = [os.path.abspath(os.path.expanduser(folder)) for folder in folders]
        self._folder = os.path.commonpath(absolute) if absolute else os.getcwd()
        for image in images:
            self.of(_first(image))

    def of(self, image: str) -> str:
        """Return the name of an image or frame; at the first call, the first name that is free."""
        if image not in self._names:
            name = stem = self._stem(image)
            while self._numbers[name]:
                self._numbers[stem] += 1
                name = f"{stem}_{self._numbers[stem]}"
            self._numbers[name] += 1
            self._names[image] = name
        return self._names[image]

    def relative(self, image: str) -> str:
        """Return the path of an image relative to the common folder; an address is unchanged."""
        if "://" in image:
            return image
        return Path(os.path.relpath(os.path.expanduser(image), self._folder)).as_posix()

    def require_apart(self, images: Iterable[str]) -> None:
        """Raise UserError if the names of two images differ only by the number.

        The number depends on the other images: with ``skip_existing``, a name would be another image's.
        """
        owners: dict[str, str] = {}
        for image in images:
            owner = owners.setdefault(stem := self._stem(image), image)
            if owner != image:
                raise UserError(f"image: expected one for {stem}.txt, got {owner} and {image}: rename one")

    def _stem(self, image: str) -> str:
        if "://" in image:
            return Path(urlsplit(image).path).stem or "image"
        return Path(self.relative(image)).with_suffix("").as_posix()


def _first(image: str) -> str:
    """Return the path of an image's first result: of a video's first frame, or of the image."""
    return f"{image}#1" if is_video(image) else image


def _yolo(result: Detections) -> bytes:
    """Return a line per object: its label, its centre, width and height between 0 and 1, and its score."""
    assert result.image is not None  # a detector's result has an image
    height, width = result.image.shape[:2]
    lines = []
    for label, score, (x1, y1, x2, y2) in zip(result.labels, result.scores, result.boxes, strict=True):
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height, score)
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines).encode()
