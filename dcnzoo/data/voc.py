"""Read Pascal VOC's XML files."""

import re
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from dcnzoo.data.builder import Builder
from dcnzoo.data.dataset import Object
from dcnzoo.data.files import InvalidAnnotation, finite, read_lines
from dcnzoo.data.geometry import turned_box
from dcnzoo.data.tree import WORDS, Reader, Tree, by_split, normal
from dcnzoo.utils.text import few

_ROOT = re.compile(rb"<annotation[\s>]")  # LabelImg writes verified="yes" in it, VoTT too


class Voc(Reader):
    """The reader of VOC's files."""

    name, position = "Pascal VOC", "{}: object {}"
    lists_classes, counts_pixels = False, True

    @classmethod
    def find(cls, tree: Tree) -> "Voc | None":
        """Return the reader, if there are files of VOC."""
        xml = [file for file in tree.candidates if file.suffix.lower() == ".xml"]
        own = [file for file in xml if _ROOT.search(file.read_bytes().replace(b"\0", b""))]  # of UTF-16
        return cls(tree, own) if own else None

    def groups(self) -> dict[str, list[Path]]:
        """Return the files of each split, by the lists ``ImageSets/Main/train.txt`` …, else by folders."""
        texts = [file for file in self.tree.files if file.suffix == ".txt" and _root_of_list(file)]
        if not texts:
            return super().groups()
        lists = {file: WORDS[name] for file in texts if (name := file.stem.lower()) in WORDS}
        if "train" not in lists.values():  # beside train, trainval lists the same files again
            lists |= {file: "train" for file in texts if file.stem.lower() in ("trainval", "default")}
        if not lists:
            raise InvalidAnnotation(f"expected a list train.txt, val.txt or test.txt, got {few(texts)}")
        self.lists += lists
        groups = by_split([(xml, split) for file, split in lists.items() for xml in self._listed(file)])
        listed = {file for own in groups.values() for file in own}
        if others := [file for file in self.files if file not in listed]:
            self.notes.append(f"XML files that no list names, not used: {len(others)} ({few(others, 2)})")
        return groups

    def _listed(self, listing: Path) -> list[Path]:
        """Return the XML files that a list names, only from the list's own devkit (VOC2007 or VOC2012)."""
        root, by_stem = _root_of_list(listing), dict[str, list[Path]]()
        for file in self.files:
            if root in file.parents:
                by_stem.setdefault(normal(file.stem), []).append(file)
        listed = []
        for number, line in read_lines(listing):
            *above, last = normal(line.strip('"')).split("/")
            files = by_stem.get(last) or by_stem.get(Path(last).stem) or []  # with an ending
            if len(files) > 1:  # cam1/0001 and cam2/0001
                files = [f for f in files if [*map(normal, f.parts)][-1 - len(above) : -1] == above]
            if len(files) != 1:
                got = f"{line}, of which there are {len(files)}"
                raise InvalidAnnotation(f"{listing}:{number}: expected the name of an XML file, got {got}")
            listed += files
        return listed

    def add(self, file: Path, split: str, builder: Builder) -> None:
        """Add the objects of an XML file, and the picture of the same name; ``<filename>`` is not read.

        A box includes the pixels ``xmin`` and ``xmax``, counted from 1: 1 and 3 become x 0 and width 3.
        Difficult objects become crowds, which training and evaluation ignore.
        """
        root = _parse(file)
        sides = () if root.find("size") is None else ("width", "height")
        stated = tuple(int(_number(root, f"size/{side}")) for side in sides) or (None, None)
        entries = enumerate(root.iter("object"), 1)
        builder.add(split, self.tree.picture_named_as(file), entries, _object, file, stated)


def _object(element: Element, size: tuple[int, int], builder: Builder) -> Object:
    name, box = (element.findtext("name") or "").strip(), element.find("bndbox")
    if not name or box is None:
        raise InvalidAnnotation("expected <name> and <bndbox>")
    x1, y1, x2, y2 = (_number(box, side) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not builder.options.zero_based:
        if min(x1, y1) < 1:
            raise InvalidAnnotation(
                f"{name}: expected xmin and ymin ≥ 1 (Pascal VOC counts from 1), got {x1:g} and {y1:g}; "
                "zero_based=True reads a file that counts from 0"
            )
        x1, y1 = x1 - 1, y1 - 1
    for attribute in element.iterfind("attributes/attribute"):  # of CVAT
        if attribute.findtext("name") == "rotation" and (angle := _number(attribute, "value") % 360):
            x1, y1, x2, y2 = turned_box((x1, y1, x2, y2), angle, size)
    is_difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    return builder.new_box(name, (x1, y1, x2, y2), size, iscrowd=int(is_difficult))


def _root_of_list(file: Path) -> Path | None:
    """Return the folder above a list's ``ImageSets``; None for other files, such as segmentation lists."""
    folder = file.parent.parent if file.parent.name == "Main" else file.parent
    return folder.parent if folder.name == "ImageSets" else None


def _parse(file: Path) -> Element:
    try:
        # expat limits the expansion of entities, and ElementTree resolves no external ones
        return ElementTree.parse(file).getroot()  # nosec B314
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise InvalidAnnotation(f"expected XML: {error}") from None


def _number(element: Element, tag: str) -> float:
    return finite(element.findtext(tag) or "", f"<{tag}>")
