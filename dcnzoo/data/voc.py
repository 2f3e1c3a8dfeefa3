"""Read Pascal VOC's XML files."""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from dcnzoo.data.conversion import MISSING, CocoBuilder, image_size, turned_box, wrong_size
from dcnzoo.data.files import InvalidAnnotation, finite
from dcnzoo.data.splits import (
    SPLITS,
    Names,
    Part,
    ReadOptions,
    Tree,
    parts_by_split,
    path_parts,
)
from dcnzoo.utils.formats import PICTURES
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import few, short

_FLAGS = {"1": 1, "true": 1, **dict.fromkeys(("0", "false", "unspecified", ""), 0)}
LISTS = (*SPLITS, "default")  # names of lists in ImageSets that are not those of a class


def find_voc(tree: Tree) -> list[Part]:
    """Return the parts of Pascal VOC's files: by the lists in ``ImageSets``, else by folders.

    A box includes the pixels ``xmin`` and ``xmax``, counted from 1: ``xmin`` 1 and ``xmax`` 3 become x 0 and
    width 3.
    """
    files = [file for file in track(tree.ending(".xml"), "listing") if is_voc(file)]
    lists = _split_lists(tree) if files else {}
    splits = lists or {file: tree.part_of(file) for file in files}

    def parse(own: tuple[Path, ...], split: str, options: ReadOptions) -> CocoBuilder:
        xml, listings = (files, own) if lists else (own, ())
        return _read(xml, listings, tree, options, split)

    def parse_others(options: ReadOptions) -> CocoBuilder:
        listed = {file for part in parts for file in part.read(options).sources}
        return _read([file for file in files if file not in listed], (), tree, options)

    parts = parts_by_split(splits, parse)
    others = [Part("", tuple(files), parse_others, rest=True, reason="no list in ImageSets names them")]
    return parts + others if lists else parts


def is_voc(file: Path) -> bool:
    """Whether the first bytes of a file, in any encoding, have VOC's outermost element; not LabelMe 3.0's."""
    if not os.path.isfile(file):
        return False
    with open(file, "rb") as opened:
        content = opened.read(4000).replace(b"\0", b"")
    return re.search(rb"<annotation[\s>/]", content) is not None and b"<polygon>" not in content


def _split_lists(tree: Tree) -> dict[Path, str]:
    """Return the lists of splits, or, as VoTT writes no others, those of each class: ``cat_train.txt``.

    They are in ``ImageSets/Main``; those in ``ImageSets`` are used if they have other names.
    """
    texts = [] if tree.asked == "" else tree.ending(".txt")
    lists = [file for file in texts if file.parent.parts[-2:] == ("ImageSets", "Main")]
    others = [file for file in texts if file.parent.name == "ImageSets"]
    lists += [file for file in others if file.parent / "Main" / file.name not in lists]
    if named := {file: str(tree.asked) for file in lists if file.stem == tree.asked}:
        return named
    splits = {file: SPLITS.get(file.stem.lower(), "") for file in lists if file.stem.lower() in LISTS}
    # a class may be called train, too
    ends = {file: file.stem.lower().rpartition("_")[2] for file in lists}
    return splits or {file: SPLITS[end] for file, end in ends.items() if end in SPLITS}


def _read(
    files: Sequence[Path],
    listings: Sequence[Path],  # empty: all files
    pictures: Tree,
    options: ReadOptions,
    split: str = "",
) -> CocoBuilder:
    """Read the images and objects of XML files."""
    builder = CocoBuilder(options.classes, options.clip)
    if listings:
        by_stem = Names(files, lambda file: file.stem)
        folder = (files or listings)[0].parent
        files = []
        for listing in listings:
            find = functools.partial(
                _of_line, listing=listing, folder=folder, by_stem=by_stem, tree=pictures, split=split
            )
            files += builder.listed(listing, find)
        if any(listing.stem.lower() not in LISTS for listing in listings):
            files = [*dict.fromkeys(files)]  # the list of each class has all pictures

    def convert(file: Path) -> None:
        tree = parse_xml(file)
        if tree.tag != "annotation":
            raise InvalidAnnotation(f"expected <annotation>, got <{tree.tag}>", _line(tree))
        for thing in _convert_image(file, tree, pictures, split, builder):
            with builder.refusing(file, _line(thing)):
                _convert_object(thing, builder, options)

    builder.convert(files, convert)
    if builder.turned:
        builder.repaired.append(f"box without its rotation (turned): {builder.turned}")
    return builder


def _of_line(line: str, listing: Path, folder: Path, by_stem: Names, tree: Tree, split: str) -> Path:
    """Return the XML file of a line of a list: a name, perhaps with folders, an ending, quotes or a flag.

    Args:
        folder: of XML files; the result is in it if there is no such file.
    """
    name = ""
    # in the list of a class, 1, 0 or -1 follows the name
    for name in dict.fromkeys((line.strip('"'), re.sub(r"\s+-?[01]$", "", line).strip('"'))):
        *folders, last = path_parts(name)
        stems = {last, Path(last).stem} if Path(last).suffix.lower() in (".xml", *PICTURES) else {last}
        files = [
            file
            for stem in stems
            for file in by_stem.get(stem)
            if file.parent.parts[len(file.parent.parts) - len(folders) :] == tuple(folders)
        ]
        exact = [file for file in files if tree.parents(file) == tuple(folders)]
        if files := exact if folders and exact else tree.best(files, listing, split):
            if len(files) > 1:
                raise InvalidAnnotation(f"expected one XML file of {short(name)}, found {few(files)}")
            return files[0]
    return folder / f"{name}.xml"


def _convert_image(
    file: Path, tree: Element, pictures: Tree, split: str, conversion: CocoBuilder
) -> list[Element]:
    """Add the image of an XML file; return its objects."""
    picture = _picture(file, tree, pictures, split)
    conversion.sources.append(picture)
    size = image_size(picture)
    element = _find(tree, "size")
    if element is not None:
        stated = tuple(_number(element, side) for side in ("width", "height"))
        if stated not in (size, (0, 0)):  # some tools write zeros
            raise InvalidAnnotation(f"<size>: {wrong_size(stated, size, picture)}", _line(element))
    conversion.add_image(picture, size)
    return [*tree.iter("object")]  # some tools write them inside of <objects>


def _convert_object(thing: Element, conversion: CocoBuilder, options: ReadOptions) -> None:
    name, _ = _text(thing, "name")
    flags = {flag: _flag(thing, flag) for flag in ("difficult", "truncated") if thing.find(flag) is not None}
    box = _find(thing, "bndbox")
    if box is None:
        raise InvalidAnnotation(f"{name}: expected <bndbox>, found none")
    x1, y1, x2, y2 = (_number(box, side) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not options.zero_based:
        if min(x1, y1) < 1:
            raise InvalidAnnotation(
                f"{name}: expected xmin and ymin ≥ 1 (Pascal VOC counts from 1), got {x1:g} and {y1:g}; "
                "use zero_based=True if the file counts from 0",
                _line(box),
            )
        x1, y1 = x1 - 1, y1 - 1
    attributes = {each.findtext("name"): each for each in thing.iterfind("attributes/attribute")}
    if "rotation" in attributes and (angle := _number(attributes["rotation"], "value")) % 360:  # CVAT's
        x1, y1, x2, y2 = turned_box((x1, y1, x2, y2), angle, conversion.size)
        conversion.turned += 1
    hard = flags.get("difficult") == 1
    if not (hard and options.difficult == "drop"):
        conversion.add_box(name, (x1, y1, x2, y2), int(hard and options.difficult == "ignore"), **flags)


def _picture(file: Path, tree: Element, pictures: Tree, split: str) -> Path:
    """Find the image of an XML file: the one with the same name, or the one in ``<filename>``."""
    stated = _find(tree, "filename")
    named = "" if stated is None else _content(stated)
    paths = pictures.of(file, named, split)
    if len(paths) != 1:
        names, line = f"{file.stem}.jpg (.png, …)", _line(tree if stated is None else stated)
        names += f" or {path_parts(named)[-1]}" if path_parts(named) else ""
        got, kind = " and ".join(path.name for path in paths) or "none", "" if paths else MISSING
        text = f"expected one image {names} in {pictures.root}, found {got}"
        raise InvalidAnnotation(text, line, kind, 0 if paths else len([*tree.iter("object")]))
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
    child = _find(element, tag)
    text = "" if child is None else _content(child).lower()
    if text not in _FLAGS:
        assert child is not None
        raise InvalidAnnotation(f"<{tag}>: expected 0 or 1, got {_content(child)!r}", _line(child))
    return _FLAGS[text]


def parse_xml(file: Path) -> Element:
    """Parse an XML file; the attribute ``line`` of each element is its line number.

    Raises:
        InvalidAnnotation: the file is not well-formed, or declares entities, which can expand a few lines to
            gigabytes.
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
    return builder.close()
