"""Convert Pascal VOC's XML files to COCO's format."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.parsers import expat

from dcnzoo.data.conversion import (
    SUFFIXES,
    CocoBuilder,
    InvalidAnnotation,
    Step,
    image_size,
    number,
    read_lines,
    wrong_size,
)
from dcnzoo.utils.errors import UserError

DIFFICULT = ("ignore", "keep", "drop")


def convert_voc(
    root: str | Path,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    difficult: str = "ignore",
    zero_based: bool = False,
    clip: bool = False,
    step: Step = lambda done, total: None,
) -> tuple[CocoBuilder, Path]:
    """Read a folder in the format of Pascal VOC.

    A box includes the pixels ``xmin`` and ``xmax``, counted from 1: ``xmin`` 1 and ``xmax`` 3 become x 0 and
    width 3.

    Args:
        root: contains ``Annotations``, ``JPEGImages`` and ``ImageSets``; or contains the XML files, with
            images in the same folder or in ``images``.
        split: read only the XML files listed in ``ImageSets/Main/{split}.txt`` or ``ImageSets/{split}.txt``;
            by default all.
        classes: names in the order of their labels; by default the names that occur, sorted.
        annotations, images: other folders for the XML files and the images.
        difficult: handling of objects marked as difficult: ``'ignore'`` sets COCO's ``iscrowd``, which
            excludes them from training and evaluation; ``'keep'`` and ``'drop'``.
        zero_based: coordinates are positions of edges, starting at 0, as in COCO.
        clip: see :class:`~dcnzoo.data.conversion.CocoBuilder`.
        step: called after each file.

    Returns:
        The conversion, with its problems, and the folder to which the images' names are relative.

    Raises:
        UserError: a folder or the split does not exist, or there is no XML file.
    """
    root = Path(root)
    if difficult not in DIFFICULT:
        raise UserError(f"difficult: expected one of {', '.join(DIFFICULT)}, got {difficult}")
    for name, folder in (("folder", root), ("annotations", annotations), ("images", images)):
        if folder is not None and not os.path.isdir(folder):
            raise UserError(f"{name}: expected a folder, found none at {folder}")
    xml_folder = Path(annotations) if annotations else _first_folder(root, ("Annotations", "annotations"))
    image_folder = (
        Path(images) if images else _first_folder(root, ("JPEGImages", "images", "Images"), xml_folder)
    )
    conversion = CocoBuilder(classes, clip)
    if split:
        files = list(_of_split(root, split, xml_folder, conversion))
    else:
        files = sorted(file for file in xml_folder.iterdir() if file.suffix.lower() == ".xml")
    if not files and not conversion.problems:
        raise UserError(
            f"annotations: expected XML files, found none in {f'{split}.txt' if split else xml_folder}"
        )
    conversion.convert(
        files, lambda file: _convert_file(file, image_folder, conversion, difficult, zero_based), step
    )
    return conversion, image_folder


def _first_folder(root: Path, names: Sequence[str], otherwise: Path | None = None) -> Path:
    return next((root / name for name in names if (root / name).is_dir()), otherwise or root)


def _of_split(root: Path, split: str, folder: Path, conversion: CocoBuilder) -> Iterator[Path]:
    places = [root / "ImageSets" / "Main" / f"{split}.txt", root / "ImageSets" / f"{split}.txt"]
    place = next((place for place in places if os.path.isfile(place)), None)
    if place is None:
        raise UserError(f"split: expected {places[0]} or {places[1]}, found neither")
    try:
        lines = list(read_lines(place))
    except InvalidAnnotation as error:
        raise UserError(f"{place}: {error}") from None
    seen: dict[str, int] = {}
    for at, line in lines:
        name = line.split()[0]  # in the list of a class, 1, 0 or -1 follows the name
        file = folder / f"{name}.xml"
        with conversion.refusing(place, at):
            if name in seen:
                raise InvalidAnnotation(f"expected each image once, got {name} as in line {seen[name]}")
            seen[name] = at
            if not os.path.isfile(file):  # Path.is_file raises if the name is too long
                raise InvalidAnnotation(f"expected a file, found none at {file}")
            yield file


def _convert_file(
    file: Path, images: Path, conversion: CocoBuilder, difficult: str, zero_based: bool
) -> None:
    tree = parse(file)
    if tree.tag != "annotation":
        raise InvalidAnnotation(f"expected <annotation>, got <{tree.tag}>", tree.line)
    picture = _picture(file, tree, images)
    conversion.sources.append(picture)
    size = image_size(picture)
    stated = tree.find("size")
    if stated is not None:
        said = tuple(stated.number(side) for side in ("width", "height"))
        if said not in (size, (0, 0)):  # some tools write zeros
            raise InvalidAnnotation(f"<size>: {wrong_size(said, size, picture)}", stated.line)
    image = conversion.add_image(picture.relative_to(images).as_posix(), size)
    for thing in tree.all("object"):
        with conversion.refusing(file, thing.line):
            _convert_object(thing, image, size, conversion, difficult, zero_based)


def _convert_object(
    thing: Element,
    image: int,
    size: tuple[int, int],
    conversion: CocoBuilder,
    difficult: str,
    zero_based: bool,
) -> None:
    name = thing.text_of("name")
    flags = {flag: thing.flag(flag) for flag in ("difficult", "truncated") if thing.find(flag) is not None}
    box = thing.find("bndbox")
    if box is None:
        raise InvalidAnnotation(f"{name}: expected <bndbox>, found none", thing.line)
    x1, y1, x2, y2 = (box.number(side) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not zero_based:
        if min(x1, y1) < 1:
            raise InvalidAnnotation(
                f"{name}: expected xmin and ymin ≥ 1 (Pascal VOC counts from 1), got {x1:g} and {y1:g}; "
                "use --zero-based if the file counts from 0",
                box.line,
            )
        x1, y1 = x1 - 1, y1 - 1
    hard = flags.get("difficult") == 1
    if hard and difficult == "drop":
        return
    conversion.add_box(image, size, name, (x1, y1, x2, y2), int(hard and difficult == "ignore"), **flags)


def _picture(file: Path, tree: Element, images: Path) -> Path:
    """Find the image of an XML file: the one with the same name, or the one in ``<filename>``."""
    suffixes = [spelt for suffix in SUFFIXES for spelt in (suffix, suffix.upper())]
    found = [path for suffix in suffixes if os.path.isfile(path := images / f"{file.stem}{suffix}")]
    # a.jpg and a.JPG may be the same file
    found = list({path.stat().st_ino: path for path in reversed(found)}.values())
    names, line = f"{file.stem}.jpg (.png, …)", tree.line
    stated = tree.find("filename")
    if stated is not None and stated.text.strip():
        # without the folders of the machine on which it was written
        named, line = images / stated.text.strip().replace("\\", "/").rpartition("/")[2], stated.line
        if named in found:
            return named
        names += f" or {named.name}"
        found += [named] if os.path.isfile(named) else []
    if not found:
        raise InvalidAnnotation(f"expected an image {names}, found none in {images}", line)
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise InvalidAnnotation(f"expected one image, found {names} in {images}", line)
    return found[0]


# XML with line numbers


@dataclasses.dataclass
class Element:
    """An XML element with its line number."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = dataclasses.field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        return [child for child in self.children if child.tag == tag]

    def find(self, tag: str) -> Element | None:
        found = self.all(tag)
        if len(found) > 1:
            raise InvalidAnnotation(
                f"expected one <{tag}> in <{self.tag}>, found {len(found)}", found[1].line
            )
        return found[0] if found else None

    def text_of(self, tag: str) -> str:
        return self._text_and_line(tag)[0]

    def _text_and_line(self, tag: str) -> tuple[str, int]:
        found = self.find(tag)
        if found is None or not found.text.strip():
            raise InvalidAnnotation(f"expected <{tag}> with text in <{self.tag}>, found none", self.line)
        return found.text.strip(), found.line

    def number(self, tag: str) -> float:
        text, line = self._text_and_line(tag)
        try:
            return number(text)
        except ValueError:
            raise InvalidAnnotation(f"<{tag}>: expected a finite number, got {text!r}", line) from None

    def flag(self, tag: str) -> int:
        text, line = self._text_and_line(tag)
        if text not in ("0", "1"):
            raise InvalidAnnotation(f"<{tag}>: expected 0 or 1, got {text!r}", line)
        return int(text)


def parse(file: Path) -> Element:
    """Parse an XML file and return its root element.

    Raises:
        InvalidAnnotation: the file is not well-formed, or declares entities, which can expand a few lines to
            gigabytes.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    document = Element("", 0)
    stack = [document]

    def start(tag: str, _: object) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def text(data: str) -> None:
        stack[-1].text += data

    def entity(*_: object) -> None:
        raise InvalidAnnotation("expected XML without custom entities", parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: stack.pop()
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        raise InvalidAnnotation(f"expected XML: {expat.ErrorString(error.code)}", error.lineno) from None
    except (OSError, LookupError, ValueError) as error:  # not readable, or an encoding that Python lacks
        raise InvalidAnnotation(f"expected XML: {getattr(error, 'strerror', None) or error}") from None
    return document.children[0]
