"""The files of ``dcnzoo infer``: drawn pictures, texts in YOLO's format, a COCO file, a video."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from dcnzoo.detect.detections import Detections, coco_categories, coco_entries
from dcnzoo.detect.drawing import encoded
from dcnzoo.detect.video import VideoFile
from dcnzoo.utils.files import Claim, is_video, replacing
from dcnzoo.utils.text import counted

DRAWN = {".png": "PNG", ".jpg": "JPEG"}
_LONGEST = 240  # bytes of the name of an output file without ending: systems allow 255


class ResultFiles:
    """The files of a call.

    Args:
        claim: of :func:`dcnzoo.utils.files.output_files`.
        images: of the call. The files that they get are claimed.
        ending: of the file of each picture: .png or .jpg, a drawn one; .txt; none if empty.
        coco, video: whether to write these.

    Attributes:
        counts: the objects of each class.
        images, errors: the number of pictures, and of those that cannot be read.
    """

    def __init__(
        self, claim: Claim, folder: Path, images: Sequence[str], ending: str, coco: bool, video: Path | None
    ) -> None:
        self._claim, self._folder, self._ending, self._names = claim, folder, ending, _Names()
        for image in images if ending else ():
            claim(self._path(f"{image}#1" if is_video(image) else image))
        self._coco = claim(folder / "detections.json") if coco else None
        self._video = VideoFile(claim(video), images) if video else None
        self.counts: Counter[str] = Counter()
        self.images = self.errors = 0

    def lacks(self, image: str) -> bool:
        """Whether the drawn picture of an image does not exist."""
        return self._ending in DRAWN and not self._path(image).exists()

    def draw(self, result: Detections) -> None:
        """Write the picture of a result."""
        if not (self._ending in DRAWN or self._video):
            return
        picture = result.draw()
        if self._video:
            self._video.add(picture)
        if self._ending in DRAWN:
            with replacing(self._claim(self._path(result.path))) as partial:
                partial.write_bytes(encoded(picture, DRAWN[self._ending]))

    def finish(self, rows: Iterable[Mapping], classes: Sequence[str]) -> str:
        """Write the files of all rows; return the names of what was written, or an empty text."""
        written = [] if self._video is None else self._video.close()
        pictures = self._write_texts(rows, written)
        if (first := next(pictures, None)) is None:
            return " and ".join(map(str, written))
        pictures = itertools.chain([first], pictures)
        if self._coco:
            with replacing(self._coco) as partial, open(partial, "w", encoding="utf-8") as file:
                _write_coco(file, pictures, classes)
            written.append(self._coco)
        for _ in pictures:
            pass
        number = len(written) + (max(self.images - 2, 0) if self._ending else 0)
        return (
            " and ".join(map(str, written)) if number < 3 else f"{counted(number, 'files')} in {self._folder}"
        )

    def _write_texts(self, rows: Iterable[Mapping], written: list[Path]) -> Iterator[Mapping]:
        """Count the rows and write their texts; yield the rows of pictures that were read."""
        for row in rows:
            if row.get("error"):
                self.errors += 1
                continue
            self.images += 1
            self.counts.update(row["names"])
            if self._ending == ".txt":
                with replacing(self._claim(self._path(row["path"]))) as partial:
                    partial.write_text(_yolo(row))
            if self._ending and self.images < 3:
                written.append(self._path(row["path"]))
            yield row

    def _path(self, image: str) -> Path:
        return self._folder / f"{self._names[image]}{self._ending}"


class _Names(dict[str, str]):
    """The names of the output files of images, without ending: ``dog``, and ``dog_2`` for another."""

    def __init__(self) -> None:
        super().__init__()
        self._used: Counter[str] = Counter()

    def __missing__(self, image: str) -> str:
        stem = Path(image).stem
        while len(os.fsencode(stem)) > _LONGEST:
            stem = stem[:-1]
        name = stem
        while self._used[name]:
            self._used[stem] += 1
            name = f"{stem}_{self._used[stem]}"
        self._used[name] += 1
        self[image] = name
        return name


def _write_coco(file: TextIO, rows: Iterable[Mapping], classes: Sequence[str]) -> None:
    """Write a COCO file row by row; only the texts of the images stay in memory."""
    images: list[str] = []
    number = 0
    file.write(f'{{"categories": {json.dumps(coco_categories(classes))}, "annotations": [')
    for row in rows:
        image, annotations = coco_entries(row, len(images), number)
        images.append(json.dumps(image))
        for annotation in annotations:
            file.write(f"{', ' if number else ''}{json.dumps(annotation)}")
            number += 1
    file.write(f'], "images": [{", ".join(images)}]}}')


def _yolo(row: Mapping) -> str:
    """Return a line per object: its label, its centre, width and height between 0 and 1, and its score."""
    width, height = row["width"], row["height"]
    lines = []
    for label, score, (x1, y1, x2, y2) in zip(row["labels"], row["scores"], row["boxes"], strict=True):
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height, score)
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)
