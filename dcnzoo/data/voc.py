"""Read Pascal VOC's XML files."""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from dcnzoo.data.dataset import Split, turned_box
from dcnzoo.data.files import InvalidAnnotation, finite, read_lines
from dcnzoo.data.tree import WORDS, Tree, by_split, normal
from dcnzoo.utils.text import few


def is_voc(file: Path) -> bool:
    """Whether the first bytes of a file have VOC's outermost element."""
    with open(file, "rb") as opened:
        return b"<annotation>" in opened.read(4000).replace(b"\0", b"")


def splits_of(files: list[Path], tree: Tree) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the files of the splits: by the lists ``ImageSets/Main/train.txt`` …, else by folders; and notes."""
    lists = [(file, file.stem.lower()) for file in tree.ending(".txt") if "ImageSets" in file.parts]
    known = {name: WORDS.get(name, "all") for _, name in lists if name in (*WORDS, "trainval", "default")}
    if "train" in known.values():  # trainval lists the same files again
        known = {name: split for name, split in known.items() if split != "all"}
    if "val" not in known.values():
        known = {name: split if split == "test" else "all" for name, split in known.items()}
    if lists and not {*known.values()} - {"test"}:
        raise InvalidAnnotation(
            f"expected lists train.txt and val.txt in ImageSets, got {few([n for _, n in lists])}"
        )
    if not lists:
        return by_split({file: tree.split_of(file, own=False) for file in files}), []
    splits: dict[str, list[Path]] = {}
    for listing, name in lists:
        root = listing.parents[1 if listing.parent.name == "ImageSets" else 2]  # VOC2007 beside VOC2012
        by_stem = {normal(file.stem): file for file in files if file.is_relative_to(root)}
        for number, line in read_lines(listing) if name in known else ():
            last = line.strip('"').rpartition("/")[2]
            if (file := by_stem.get(normal(last)) or by_stem.get(normal(Path(last).stem))) is None:
                raise InvalidAnnotation(f"{listing}: expected the name of an XML file, got {line}", number)
            splits.setdefault(known[name], []).append(file)
    listed = {file for own in splits.values() for file in own}
    if others := [file for file in files if file not in listed]:
        return splits, [f"{len(others)} XML files that no list in ImageSets names, such as {few(others, 1)}"]
    return splits, []


def read_voc(files: list[Path], tree: Tree, name: str, split: Split, zero_based: bool) -> None:
    """Add the pictures and objects of XML files.

    A box includes the pixels ``xmin`` and ``xmax``, counted from 1: 1 and 3 become x 0 and width 3. Difficult
    objects become crowds, which training and evaluation ignore.
    """
    split.sources += files
    for file in files:
        with split.refusing(file):
            root = _parse(file)
            size = root.find("size")
            stated = None if size is None else tuple(int(_number(size, side)) for side in ("width", "height"))
            stem = "/".join(file.relative_to(tree.root).with_suffix("").parts)
            try:
                picture = tree.picture(stem, file.parent, name, any_ending=True)
            except InvalidAnnotation:
                picture = tree.picture(root.findtext("filename") or "", file.parent, name)
            split.add_picture(picture, stated)
            for number, thing in enumerate(root.iter("object"), 1):
                with split.refusing(f"{file}: object {number}"):
                    _add(thing, split, zero_based)


def _parse(file: Path) -> Element:
    try:
        return ElementTree.parse(file).getroot()  # nosec B314  # expat limits entities, and resolves no external ones
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise InvalidAnnotation(f"expected XML: {error}") from None


def _number(element: Element, tag: str) -> float:
    return finite(element.findtext(tag) or "", f"<{tag}>")


def _add(thing: Element, split: Split, zero_based: bool) -> None:
    name, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
    if not name or box is None:
        raise InvalidAnnotation("expected <name> and <bndbox>")
    x1, y1, x2, y2 = (_number(box, side) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not zero_based:
        if min(x1, y1) < 1:
            raise InvalidAnnotation(
                f"{name}: expected xmin and ymin ≥ 1 (Pascal VOC counts from 1), got {x1:g} and {y1:g}; "
                "use zero_based=True if the file counts from 0"
            )
        x1, y1 = x1 - 1, y1 - 1
    for attribute in thing.iterfind("attributes/attribute"):
        if attribute.findtext("name") == "rotation" and (
            angle := _number(attribute, "value") % 360
        ):  # CVAT's
            x1, y1, x2, y2 = turned_box((x1, y1, x2, y2), angle, split.size)
    hard = (thing.findtext("difficult") or "").strip().lower() in ("1", "true")
    split.add_box(name, (x1, y1, x2, y2), iscrowd=int(hard))
