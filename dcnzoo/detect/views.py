"""Files made from the rows of detections: COCO, texts in YOLO's format, drawn pictures, a video."""

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import numpy as np

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.video import VideoFile
from dcnzoo.utils.files import read_beside, replacing, require_new
from dcnzoo.utils.formats import is_video
from dcnzoo.utils.marks import RESULTS, mark_of, seal, sealed_info
from dcnzoo.utils.text import counted

DRAWN = {".png": "PNG", ".jpg": "JPEG"}
UNFINISHED = ".unfinished-"  # how the folder with the rows of a command begins, until it has ended
_LONGEST = 240  # bytes of the name of an output file without ending: systems allow 255


class Views:
    """The files of a call.

    Args:
        folder: of the files. Those that exist are replaced only if they have the mark. Texts have no place
            for one: each has the time of its command, and ``results.json`` has these times.
        images: of the call.
        ending: of the file of each picture: .png or .jpg, a drawn one; .txt; none if empty.
        coco, video: whether to write these.
        polygons: write masks into the COCO file as polygons, not in run-length encoding.
        mark: of the files: see :mod:`dcnzoo.utils.marks`.
        force: replace other files, too; never a picture of the call.

    Attributes:
        settings: of the detector, among them ``names``, for ``results.json``; set before the first picture.
        counts: the objects of each class.
        images, errors: the number of pictures, and of those that cannot be read.

    Raises:
        UserError: a file exists that must not be replaced.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[str],
        ending: str,
        *,
        coco: bool,
        video: Path | None,
        polygons: bool,
        mark: str,
        force: bool,
    ) -> None:
        self._folder, self._ending, self._mark, self._polygons = folder, ending, mark, polygons
        self._names, self._results = Names(images), folder / RESULTS
        self._times: list[int] = []
        if mark_of(self._results) == mark:
            read = read_beside(self._results, lambda text: [*map(int, json.loads(text)["texts"])])
            self._times = read or []
        self._coco = folder / "detections.json" if coco else None
        self._classes = folder / "classes.txt" if ending == ".txt" else None
        files = [
            self._path(f"{image}#1" if is_video(image) else image) for image in (images if ending else ())
        ]
        files += filter(None, (self._coco, self._classes, self._results))
        require_new("infer", *files, mark=mark, force=force, inputs=images, own=self._is_own)
        if ending == ".txt":
            self._times.append(int(time.time()) // 2 * 2)  # some file systems store even seconds
        if video:
            require_new("infer", video, mark=mark, force=force, inputs=images)
        self._video = VideoFile(video, images, mark) if video else None
        self.settings: Mapping[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.images = self.errors = 0

    def _is_own(self, file: Path) -> bool:
        """Whether a command wrote this text, and nobody has changed it."""
        return file.suffix == ".txt" and file.stat().st_mtime in self._times

    def others(self) -> int:
        """Return how many commands have not finished in the folder."""
        return len([*self._folder.glob(f"{UNFINISHED}*")])

    def lacks(self, image: str) -> bool:
        """Whether the drawn picture of an image does not exist."""
        return self._ending in DRAWN and not self._path(image).exists()

    def draw(self, result: Detections) -> None:
        """Write the picture of a result."""
        if not (self._ending in DRAWN or self._video):
            return
        from dcnzoo.detect.drawing import encoded

        picture = result.draw()
        if self._video:
            self._video.add(picture)
        if self._ending in DRAWN:
            if not self._results.exists():  # from the first picture on, the folder is no data
                self._record()
            with replacing(self._path(result.path)) as partial:
                partial.write_bytes(encoded(picture, DRAWN[self._ending], self._mark))

    def finish(self, rows: Iterable[Mapping]) -> str:
        """Write the files of all rows; return the names of what was written, or an empty text."""
        classes = self.settings["names"]
        written = [] if self._video is None else self._video.close()
        pictures = self._write_texts(rows, written)
        if (first := next(pictures, None)) is None:
            return " and ".join(map(str, written))
        pictures = itertools.chain([first], pictures)
        if self._coco:
            with replacing(self._coco) as partial, open(partial, "w", encoding="utf-8") as file:
                self._write_coco(file, pictures, classes)
                file.flush()
                seal(partial)
            written.append(self._coco)
        for _ in pictures:
            pass
        if self._classes:
            self._write_text(self._classes, "".join(f"{name}\n" for name in classes))
            written.append(self._classes)
        number = len(written) + (max(self.images - 2, 0) if self._ending else 0)
        return (
            " and ".join(map(str, written)) if number < 4 else f"{counted(number, 'files')} in {self._folder}"
        )

    def _record(self) -> None:
        content = {**sealed_info(self._mark), "format": "files", "texts": self._times, **self.settings}
        with replacing(self._results) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
            seal(partial)

    def _write_text(self, path: Path, text: str) -> None:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
            os.utime(partial, (self._times[-1],) * 2)

    def _write_texts(self, rows: Iterable[Mapping], written: list[Path]) -> Iterator[Mapping]:
        """Count the rows and write their texts; yield the rows of pictures that were read."""
        for row in rows:
            if row.get("error"):
                self.errors += 1
                continue
            self.images += 1
            self.counts.update(row["names"])
            if self.images == 1:
                self._record()  # before the files
            if self._ending == ".txt":
                self._write_text(self._path(row["path"]), _yolo(row))
            if self._ending and self.images < 3:
                written.append(self._path(row["path"]))
            yield row

    def _write_coco(self, file: TextIO, rows: Iterable[Mapping], classes: Sequence[str]) -> None:
        """Write a COCO file row by row; only the texts of the images stay in memory."""
        images: list[str] = []
        number = 0
        head = {"info": sealed_info(self._mark), "licenses": [], "categories": coco_categories(classes)}
        file.write(f'{json.dumps(head)[:-1]}, "annotations": [')
        for row in rows:
            name = self._names.relative(row["path"])
            image, annotations = coco_entries({**row, "path": name}, len(images), number, self._polygons)
            images.append(json.dumps(image))
            for annotation in annotations:
                file.write(f"{', ' if number else ''}{json.dumps(annotation)}")
                number += 1
        file.write(f'], "images": [{", ".join(images)}]}}')

    def _path(self, image: str) -> Path:
        return self._folder / f"{self._names[image]}{self._ending}"


class Names(dict[str, str]):
    """The names of the output files of images, without ending, below their common folder.

    ``dog`` for ``photos/dog.jpg``, ``dog_2`` for ``photos/dog.png``, ``a/dog`` and ``b/dog`` for pictures in
    two folders.
    """

    def __init__(self, images: Iterable[str]) -> None:
        super().__init__()
        self._used: Counter[str] = Counter()
        folders = {os.path.dirname(image) for image in images if "://" not in image}
        absolute = [os.path.abspath(os.path.expanduser(folder)) for folder in folders]
        self._folder = os.path.commonpath(absolute) if absolute else os.getcwd()

    def relative(self, image: str) -> str:
        """Return the path of an image relative to the common folder; an address stays."""
        if "://" in image:
            return image
        return Path(os.path.relpath(os.path.expanduser(image), self._folder)).as_posix()

    def __missing__(self, image: str) -> str:
        path = Path(urlsplit(image).path if "://" in image else self.relative(image))
        stem = path.stem or "image"
        while len(os.fsencode(stem)) > _LONGEST:
            stem = stem[:-1]
        stem = stem if "://" in image else path.with_name(stem).as_posix()
        name = stem
        while self._used[name]:
            self._used[stem] += 1
            name = f"{stem}_{self._used[stem]}"
        self._used[name] += 1
        self[image] = name
        return name


def coco_categories(classes: Sequence[str]) -> list[dict]:
    return [{"id": number, "name": name} for number, name in enumerate(classes, 1)]


def coco_entries(
    row: Mapping, images: int, annotations: int, polygons: bool = False
) -> tuple[dict, list[dict]]:
    """Return the image of a row and its annotations in COCO's format; the numbers count earlier ones."""
    image = {"id": images + 1, "file_name": row["path"]}
    if row["width"] is not None:
        image |= {"width": row["width"], "height": row["height"]}
    entries = []
    for i, (x1, y1, x2, y2) in enumerate(row["boxes"]):
        entry = {"id": annotations + i + 1, "image_id": images + 1, "category_id": row["labels"][i] + 1}
        entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        if row.get("masks") is not None:
            mask = {"size": [row["height"], row["width"]], "counts": row["masks"][i]}
            entry |= _segmentation(mask, polygons)
        entries.append({**entry, "iscrowd": 0, "score": row["scores"][i]})
    return image, entries


def _segmentation(mask: dict, polygons: bool) -> dict[str, Any]:
    """Return the area and the segmentation of a mask in run-length encoding; it stays without pixels."""
    from pycocotools.mask import area, decode

    encoded_mask = {**mask, "counts": mask["counts"].encode()}
    pixels = int(area(encoded_mask))
    outlines = polygons_of(decode(encoded_mask)) if polygons and pixels else None
    return {"area": float(pixels), "segmentation": outlines or mask}


def polygons_of(mask: np.ndarray) -> list[list[float]]:  # [H, W]
    """Return the outlines of a mask, [x1, y1, x2, y2, …], without its holes. Requires OpenCV.

    OpenCV's outlines go through the centres of pixels. Those of the doubled mask are within a quarter of a
    pixel of its border.
    """
    import cv2

    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((outline.reshape(-1) + 0.5) / 2).tolist() for outline in outlines if len(outline) > 2]


def _yolo(row: Mapping) -> str:
    """Return a line per object: its label, its centre, width and height between 0 and 1, and its score."""
    width, height = row["width"], row["height"]
    lines = []
    for label, score, (x1, y1, x2, y2) in zip(row["labels"], row["scores"], row["boxes"], strict=True):
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height, score)
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)
