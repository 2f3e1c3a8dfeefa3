"""Convert Pascal VOC's XML files to COCO's format."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from dcnzoo.data.conversion import (
    CocoBuilder,
    InvalidAnnotation,
    finite,
    image_size,
    wrong_size,
)
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import PICTURES


def convert_voc(
    root: str | Path,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    difficult: str = "ignore",
    zero_based: bool = False,
    clip: bool = False,
) -> tuple[CocoBuilder, Path]:
    """Read a folder in the format of Pascal VOC.

    A box includes the pixels ``xmin`` and ``xmax``, counted from 1: ``xmin`` 1 and ``xmax`` 3 become x 0 and
    width 3.

    Args:
        root: contains ``Annotations``, ``JPEGImages`` and ``ImageSets``; or contains the XML files, with
            images in the same folder or in ``images``.
        split: read only the XML files listed in ``ImageSets/Main/{split}.txt`` or ``ImageSets/{split}.txt``;
            by default all.
        annotations, images: other folders for the XML files and the images.
        difficult: handling of objects marked as difficult: ``'ignore'`` sets COCO's ``iscrowd``, which
            excludes them from training and evaluation; ``'keep'`` and ``'drop'``.
        zero_based: coordinates are positions of edges, starting at 0, as in COCO.
        classes, clip: see :mod:`dcnzoo.data.conversion`, also for the result.

    Raises:
        UserError: the split does not exist, or there is no XML file.
    """
    root = Path(root)
    xml_folder = Path(annotations or _first_folder(root, "Annotations", "annotations") or root)
    image_folder = Path(images or _first_folder(root, "JPEGImages", "images", "Images") or xml_folder)
    conversion = CocoBuilder(classes, clip)
    if split:
        files = list(_of_split(root, split, xml_folder, conversion))
    else:
        files = sorted(file for file in xml_folder.iterdir() if file.suffix.lower() == ".xml")
    if not files and not conversion.problems:
        raise UserError(
            f"annotations: expected XML files, found none in {f'{split}.txt' if split else xml_folder}"
        )

    def convert(file: Path) -> None:
        tree = _parse(file)
        for thing in _convert_image(file, tree, image_folder, conversion):
            with conversion.refusing(file, _line(thing)):
                _convert_object(thing, conversion, difficult, zero_based)

    conversion.convert(files, convert)
    return conversion, image_folder


def _first_folder(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _of_split(root: Path, split: str, folder: Path, conversion: CocoBuilder) -> Iterator[Path]:
    listings = [root / "ImageSets" / "Main" / f"{split}.txt", root / "ImageSets" / f"{split}.txt"]
    listing = next((listing for listing in listings if os.path.isfile(listing)), None)
    if listing is None:
        raise UserError(f"split: expected {listings[0]} or {listings[1]}, found neither")
    # in the list of a class, 1, 0 or -1 follows the name
    return conversion.listed(listing, lambda line: folder / f"{line.split()[0]}.xml")


def _convert_image(file: Path, tree: Element, images: Path, conversion: CocoBuilder) -> list[Element]:
    """Add the image of an XML file; return its objects."""
    picture = _picture(file, tree, images)
    conversion.sources.append(picture)
    size = image_size(picture)
    element = _find(tree, "size")
    if element is not None:
        stated = tuple(_number(element, side) for side in ("width", "height"))
        if stated not in (size, (0, 0)):  # some tools write zeros
            raise InvalidAnnotation(f"<size>: {wrong_size(stated, size, picture)}", _line(element))
    conversion.add_image(picture.relative_to(images).as_posix(), size)
    return tree.findall("object")


def _convert_object(thing: Element, conversion: CocoBuilder, difficult: str, zero_based: bool) -> None:
    name, _ = _text(thing, "name")
    flags = {flag: _flag(thing, flag) for flag in ("difficult", "truncated") if thing.find(flag) is not None}
    box = _find(thing, "bndbox")
    if box is None:
        raise InvalidAnnotation(f"{name}: expected <bndbox>, found none")
    x1, y1, x2, y2 = (_number(box, side) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not zero_based:
        if min(x1, y1) < 1:
            raise InvalidAnnotation(
                f"{name}: expected xmin and ymin ≥ 1 (Pascal VOC counts from 1), got {x1:g} and {y1:g}; "
                "use --zero-based if the file counts from 0",
                _line(box),
            )
        x1, y1 = x1 - 1, y1 - 1
    hard = flags.get("difficult") == 1
    if not (hard and difficult == "drop"):
        conversion.add_box(name, (x1, y1, x2, y2), int(hard and difficult == "ignore"), **flags)


def _picture(file: Path, tree: Element, images: Path) -> Path:
    """Find the image of an XML file: the one with the same name, or the one in ``<filename>``."""
    suffixes = [spelt for suffix in PICTURES for spelt in (suffix, suffix.upper())]
    paths = [path for suffix in suffixes if os.path.isfile(path := images / f"{file.stem}{suffix}")]
    names, line = f"{file.stem}.jpg (.png, …)", _line(tree)
    stated = _find(tree, "filename")
    if stated is not None and _content(stated):
        # without the folders of the machine on which it was written
        named, line = images / _content(stated).replace("\\", "/").rpartition("/")[2], _line(stated)
        if named in paths:
            return named
        names += f" or {named.name}"
        paths += [named] if os.path.isfile(named) else []
    if len(paths) != 1:
        got = " and ".join(path.name for path in paths) or "none"
        raise InvalidAnnotation(f"expected one image {names} in {images}, found {got}", line)
    return paths[0]


# XML with line numbers


def _line(element: Element) -> int:
    return int(element.attrib["line"])


def _content(element: Element) -> str:
    return (element.text or "").strip()


def _find(element: Element, tag: str) -> Element | None:
    children = element.findall(tag)
    if len(children) > 1:
        where = f"<{tag}> in <{element.tag}>"
        raise InvalidAnnotation(f"expected one {where}, found {len(children)}", _line(children[1]))
    return children[0] if children else None


def _text(element: Element, tag: str) -> tuple[str, int]:
    """Return the text of a child element, and its line."""
    child = _find(element, tag)
    if child is None or not _content(child):
        raise InvalidAnnotation(f"expected <{tag}> with text in <{element.tag}>, found none", _line(element))
    return _content(child), _line(child)


def _number(element: Element, tag: str) -> float:
    text, line = _text(element, tag)
    return finite(text, f"<{tag}>", line)


def _flag(element: Element, tag: str) -> int:
    text, line = _text(element, tag)
    if text not in ("0", "1"):
        raise InvalidAnnotation(f"<{tag}>: expected 0 or 1, got {text!r}", line)
    return int(text)


def _parse(file: Path) -> Element:
    """Parse an XML file; the attribute ``line`` of each element is its line number.

    Raises:
        InvalidAnnotation: the file is not a well-formed annotation, or declares entities, which can expand a
            few lines to gigabytes.
    """
    parser, builder = expat.ParserCreate(), TreeBuilder()

    def refuse_entity(*_: object) -> None:
        raise InvalidAnnotation("expected XML without custom entities", parser.CurrentLineNumber)

    parser.StartElementHandler = lambda tag, _: builder.start(tag, {"line": str(parser.CurrentLineNumber)})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse_entity
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        raise InvalidAnnotation(f"expected XML: {expat.ErrorString(error.code)}", error.lineno) from None
    except (OSError, LookupError, ValueError) as error:  # not readable, or an encoding that Python lacks
        raise InvalidAnnotation(f"expected XML: {getattr(error, 'strerror', None) or error}") from None
    tree = builder.close()
    if tree.tag != "annotation":
        raise InvalidAnnotation(f"expected <annotation>, got <{tree.tag}>", _line(tree))
    return tree
