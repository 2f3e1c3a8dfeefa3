"""The pictures and objects of a data set, its splits, and their COCO files.

Coordinates are COCO's: (0, 0) is the upper left corner of the first pixel, (1, 1) its lower right corner.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import msgspec

from dcnzoo.data.coco_file import Mask, mask_of
from dcnzoo.data.splits import divide, require_apart
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import expanded, writing
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import counted
from dcnzoo.version import __version__

ALL = "all"  # the split of all pictures, if the data does not have both train and val


@dataclass(frozen=True)
class ReadOptions:
    """How annotations are read.

    Attributes:
        zero_based: the coordinates of Pascal VOC are edges counted from 0, not pixels counted from 1.
        clip: clip objects to the picture.
        skip_invalid: leave out objects and pictures with problems.
        classes: names in the order of their labels; empty: those of the data.
    """

    zero_based: bool = False
    clip: bool = False
    skip_invalid: bool = False
    classes: tuple[str, ...] = ()


class Object(msgspec.Struct, gc=False):
    """An annotated object; ``segmentation`` is COCO's, or its JSON text."""

    name: str
    bbox: list[float]  # x, y, width, height
    area: float
    iscrowd: int
    segmentation: Any

    @property
    def mask(self) -> Mask | None:
        """The mask as in COCO files: polygons, or a dictionary of run-length encoding."""
        return mask_of(self.segmentation) if isinstance(self.segmentation, msgspec.Raw) else self.segmentation

    def entry(self, number: int, image: int, labels: Mapping[str, int]) -> dict[str, Any]:
        """Return COCO's annotation."""
        mask = [] if self.segmentation is None else self.segmentation
        ids = {"id": number, "image_id": image, "category_id": labels[self.name]}
        return {**ids, "bbox": self.bbox, "area": self.area, "iscrowd": self.iscrowd, "segmentation": mask}


class Picture(msgspec.Struct, gc=False):
    """A picture with its objects.

    Attributes:
        size: (width, height).
        source: the file with its annotation; None: the picture has none, and is used as an empty one.
        objects: by their lines or numbers in the annotation.
    """

    file: Path
    size: tuple[int, int]
    source: Path | None = None
    objects: dict[int, Object] = {}


@dataclass(eq=False)
class Dataset:
    """Pictures with their objects. :func:`dcnzoo.data.read` returns one; iteration yields the pictures.

    Attributes:
        classes: names in the order of their labels; all splits share them.
        path: the folder or file that was read.
        format: the name of the format.
        position: text of an object's position, of the file and the number in it.
        splits: the pictures of each split that the data state: ``train`` and ``val``, or ``all``; perhaps
            ``test``.
        problems: the pictures, objects and files that are left out.
        notes: lines for the user.
    """

    classes: dict[str, None]
    path: Path = Path()
    format: str = ""
    position: str = "{}: {}"
    splits: dict[str, list[Picture]] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Picture]:
        return chain(*self.splits.values())

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of all splits."""
        return [*self]

    @property
    def objects(self) -> list[Object]:
        """The objects of all pictures, in their order."""
        return [each for picture in self for each in picture.objects.values()]

    @property
    def unlabelled(self) -> list[Path]:
        """The pictures without a file of annotations, which are used as empty ones."""
        return [picture.file for picture in self if picture.source is None]

    @property
    def folder(self) -> Path:
        """The deepest folder with all pictures."""
        return Path(os.path.commonpath({os.path.abspath(picture.file.parent) for picture in self} or ["."]))

    @property
    def sides(self) -> list[tuple[float, tuple[int, int]]]:
        """The side of each object but crowds, the root of its box's area, and the size of its picture."""
        return [
            (math.sqrt(each.bbox[2] * each.bbox[3]), picture.size)
            for picture in self
            for each in picture.objects.values()
            if not each.iscrowd
        ]

    @property
    def per_class(self) -> dict[str, int]:
        """The number of objects of each class."""
        numbers = Counter(each.name for each in self.objects)
        return {name: numbers[name] for name in self.classes}

    @property
    def crowds(self) -> int:
        """The number of objects that training ignores."""
        return sum(bool(each.iscrowd) for each in self.objects)

    def part(self, name: str, pictures: list[Picture]) -> "Dataset":
        """Return some of the pictures as a data set with one split."""
        return Dataset(self.classes, self.path, self.format, self.position, {name: pictures})

    def stated(self) -> dict[str, "Dataset"]:
        """Return the data set of each split that the data state; raise UserError if a picture is in two."""
        require_apart(self.splits)
        return {name: self.part(name, pictures) for name, pictures in self.splits.items()}

    def split(self) -> dict[str, "Dataset"]:
        """Return the data sets ``train`` and ``val``, and ``test``, if the data state one.

        If the data do not state train and val, val is a random fifth of the pictures.

        Raises:
            UserError: a picture is in two splits, or the fifth would have no objects.
        """
        splits = self.stated()
        if pool := splits.pop(ALL, None):
            divided = divide(pool.pictures)
            splits = {**{name: self.part(name, pictures) for name, pictures in divided.items()}, **splits}
        return splits

    def write(self, out: str | os.PathLike[str]) -> None:
        """Write a COCO file."""
        folder, labels = self.folder, {name: number for number, name in enumerate(self.classes, 1)}
        images = (
            {"id": n, "file_name": os.path.relpath(each.file, folder), "width": each.size[0],
             "height": each.size[1]}
            for n, each in enumerate(self, 1)
        )  # fmt: skip
        numbers = count(1)
        annotations = (
            each.entry(next(numbers), image, labels)
            for image, picture in enumerate(self, 1)
            for each in picture.objects.values()
        )
        head = {
            "info": {"description": f"written by dcnzoo {__version__}"},
            "categories": [{"id": number, "name": name} for name, number in labels.items()],
        }
        encode = msgspec.json.Encoder().encode
        with writing(expanded(out)) as opened:
            opened.write(encode(head)[:-1])
            for key, entries in (("images", images), ("annotations", annotations)):
                opened.write(b',\n"%b":[' % key.encode())
                for number, entry in enumerate(entries):  # one by one: a list of all would take gigabytes
                    opened.write((b",\n" if number else b"\n") + encode(entry))
                opened.write(b"]")
            opened.write(b"}\n")


def without_mask(splits: Iterable[Dataset]) -> tuple[int, int, str]:
    """Return the number of objects without a mask, that of all objects, and the first one's position.

    Crowds, which training ignores, are not counted.
    """
    number, total, first = 0, 0, ""
    for split in splits:
        for picture in split:
            for key, each in picture.objects.items():
                total += not each.iscrowd
                if each.segmentation is None and not each.iscrowd:
                    number += 1
                    first = first or split.position.format(picture.source, key)
    return number, total, first


def require_masks(splits: Iterable[Dataset], reason: str, remedy: str) -> None:
    """Raise UserError if objects have no mask; the reason and the remedy are parts of the message."""
    number, _, first = without_mask(splits)
    if number:
        got = f"{counted(number, 'objects')} without one, such as {first}; {remedy}"
        raise UserError(f"data: expected a mask of every object{reason}, got {got}")
