"""What all layouts share: the files below a folder, splits in names, pictures of annotation files."""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcnzoo.data.annotations import Annotations, read_coco
from dcnzoo.data.conversion import CocoBuilder
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import PICTURES, recorded_names, walk
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import counted, few

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "trainval": "all",
}
# words of folders, by how likely their pictures are the annotated ones
_PICTURES = {"data", "image", "images", "img", "imgs", "jpegimages", "photos", "pictures", "rgb"}
_OTHERS = {"depth", "gt", "mask", "masks", "segmentation", "segmentations", "thumbnails", "vis"}
# words of COCO's files without boxes, or with the boxes that another file has, too
_NOT_OBJECTS = {"captions", "keypoints", "panoptic", "stuff"}


@dataclass(frozen=True)
class ReadOptions:
    """How annotations are read.

    Attributes:
        zero_based: for Pascal VOC, see :func:`dcnzoo.data.voc.convert_voc`.
        clip: clip objects to the image.
        skip_invalid: leave out objects and images with problems.
        extract: folder for images that exist only inside LabelMe's JSON files.
    """

    zero_based: bool = False
    clip: bool = False
    skip_invalid: bool = False
    extract: Path | None = None


AS_THEY_ARE = ReadOptions()


@dataclass(eq=False)
class Part:
    """A split of a data set on the disk.

    Attributes:
        split: train, val or test; ``all`` if the data has no splits, or empty if no name says it.
        files: those with the annotations, or those that list them.
        parse: reads them.
    """

    split: str
    files: tuple[Path, ...]
    parse: Callable[[ReadOptions], CocoBuilder | Annotations]

    def read(self, options: ReadOptions = AS_THEY_ARE) -> Annotations:
        """Read the annotations."""
        result = self.parse(options)
        if isinstance(result, Annotations):
            return result
        problems, repaired = result.problems, []
        if options.clip and result.clipped:
            repaired.append(f"objects clipped to their images: {result.clipped}")
        if options.skip_invalid and problems:
            repaired.append(f"problems skipped: {len(problems)}, such as {problems[0]}")
            problems = []
        return Annotations(
            Path(),
            result.lazy_content(),
            problems,
            folder=result.folder,
            sources=result.sources,
            extracted=result.extracted,
            repaired=repaired,
        )


def parts_by_split(
    splits: Mapping[Path, str], parse: Callable[[tuple[Path, ...], str, ReadOptions], CocoBuilder]
) -> list[Part]:
    """Return a part for each split, whose files ``parse`` gets with the split's name."""
    parts = []
    for split in sorted(set(splits.values())):
        files = tuple(file for file in splits if splits[file] == split)
        parts.append(Part(split, files, functools.partial(parse, files, split)))
    return parts


def parts_by_file(
    tree: "Tree",
    names: Mapping[Path, Sequence[str]],
    parse: Callable[[Path, Path, int, ReadOptions], CocoBuilder | Annotations],
) -> list[Part]:
    """Return a part for each file that names pictures; ``parse`` gets it and their :func:`folder_of`."""

    def parse_in(file: Path, folder: tuple[Path, int] | None, options: ReadOptions) -> Any:
        if folder is None:
            raise UserError(f"{file}: expected its pictures below {tree.root}, found none of them")
        return parse(file, *folder, options)

    parts = []
    for file, own in names.items():
        split = tree.split_of(file)
        folder = folder_of(own, tree, split)
        parts.append(Part(split, (file,), functools.partial(parse_in, file, folder)))
    return parts


@functools.cache
def split_of(name: str) -> str:
    """Return the split that a word of a name states: ``instances_train2017`` is train; empty if none does.

    ``test`` takes precedence, because nothing that is named like it may be trained on.
    """
    splits = {SPLITS[word] for word in _words(name) if word in SPLITS}
    if "test" in splits:
        return "test"
    return "all" if len(splits) > 1 else next(iter(splits), "")


def path_parts(name: str) -> tuple[str, ...]:
    """Return the parts of a path that may have been written on Windows, without drive, ``.`` and ``..``."""
    parts = re.sub("^[A-Za-z]:", "", name.replace("\\", "/")).split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))


def shortened(parts: tuple[str, ...], cut: int) -> tuple[str, ...]:
    """Return the parts of a path without the first ones; the last one stays."""
    return parts[min(cut, len(parts) - 1) :]


class Tree:
    """The files below a folder, sorted, without hidden ones.

    Args:
        root: a folder.
        depth: of the subfolders that are read; by default all.
        descend: if the folder only contains another one, use that as the root.
    """

    def __init__(self, root: Path, depth: int | None = None, descend: bool = True) -> None:
        self.root, self.files = root, list[Path]()
        self.description: Path | None = None  # the file like data.yaml, if it was chosen
        self.work_dirs: list[Path] = []  # of trainings: their pictures and annotations are left out
        for folder, folders, names in walk(root):
            if folder != root and recorded_names("train", folder):
                folders.clear()
                self.work_dirs.append(folder)
                continue
            if len(folder.relative_to(root).parts) == depth:
                folders.clear()
            self.files += [folder / name for name in names]
            lonely = len(folders) == 1 and all(
                name.lower().startswith(("readme", "license")) for name in names
            )
            if descend and self.root == folder and lonely:
                self.root = folder / folders[0]
        self.files.sort()

    def ending(self, *suffixes: str) -> list[Path]:
        """Return the files with these endings, in small or capital letters."""
        return [file for file in self.files if file.suffix.lower() in suffixes]

    @functools.cached_property
    def pictures(self) -> list[Path]:
        """The files of pictures."""
        return self.ending(*PICTURES)

    @functools.cached_property
    def by_stem(self) -> dict[str, list[Path]]:
        """The pictures by their names without ending."""
        groups: dict[str, list[Path]] = defaultdict(list)
        for file in self.pictures:
            groups[file.stem].append(file)
        return groups

    def named(self, name: str) -> list[Path]:
        """Return the pictures with this name."""
        return [file for file in self.by_stem.get(Path(name).stem, ()) if file.name == name]

    @functools.cached_property
    def json(self) -> dict[Path, Any]:
        """The contents of the JSON files, without the pictures inside LabelMe's.

        Files whose names say that they have no objects (``captions_….json``) are left out beside others.
        """
        files = self.ending(".json")
        named = [file for file in files if not _NOT_OBJECTS & {*_words(file.stem)}]
        files = named or files
        # a bar for many small files: of a large one, only the outline is read
        return {file: self.json_of(file) for file in (files if len(files) < 99 else track(files, "reading"))}

    @staticmethod
    def json_of(file: Path) -> Any:
        """Return the content of a JSON file, see :func:`dcnzoo.data.annotations.read_coco`."""
        try:
            content = read_coco(file)
        except InvalidAnnotation as error:
            raise UserError(f"{file}: {error}") from None
        if isinstance(content, dict):
            content.pop("imageData", None)
        return content

    def parents(self, file: Path) -> tuple[str, ...]:
        """Return the names of the folders between the root and a file."""
        return file.relative_to(self.root).parts[:-1] if file.is_relative_to(self.root) else ()

    def split_of(self, file: Path, own: bool = True) -> str:
        """Return the split in a file's name, with ``own``, or in that of the nearest folder that has one."""
        names = [*self.parents(file)]
        if own:
            names.append(file.stem)
        return next(filter(None, map(split_of, reversed(names))), "")

    def rank(self, picture: Path, split: str) -> tuple[int, int]:
        """Return values that are larger, the more likely a picture is one of the split."""
        words = set(_words("/".join(self.parents(picture))))
        likely = 0 if words & _OTHERS else 2 if words & _PICTURES else 1
        return int(self.split_of(picture, own=False) == split), likely

    def allows(self, picture: Path, split: str) -> bool:
        """Whether a picture does not lie in a folder that is named like another split."""
        other = self.split_of(picture, own=False)
        return not split or other in ("", "all", split) or (split == "all" and other != "test")

    def best(self, pictures: Iterable[Path], near: Path, split: str) -> list[Path]:
        """Return the pictures that most likely belong to an annotation file: one, or several that tie."""
        folders = Counter(self.parents(near))

        def likelihood(picture: Path) -> tuple[object, ...]:
            common = (folders & Counter(self.parents(picture))).total()
            return (picture.parent == near.parent, common, *self.rank(picture, split))

        allowed = [picture for picture in pictures if self.allows(picture, split)]
        most = max(map(likelihood, allowed), default=None)
        return [picture for picture in allowed if likelihood(picture) == most]


def folder_of(names: Sequence[str], tree: Tree, split: str) -> tuple[Path, int] | None:
    """Find the folder that contains most of the pictures with these names.

    Folders that are named like another split are left out. If no name exists below any folder, as with paths
    of another machine, the names are shortened from the left.

    Returns:
        The folder, and the number of leading parts by which the names were shortened; None if there is no
        such folder.

    Raises:
        UserError: several folders qualify.
    """
    paths = [path_parts(name) for name in names]
    for cut in range(max(map(len, paths), default=0)):
        folders: Counter[Path] = Counter()
        for tail in (shortened(parts, cut) for parts in paths):
            for picture in tree.named(tail[-1]) if tail else ():
                if picture.parts[-len(tail) :] == tail and tree.allows(picture, split):
                    folders[Path(*picture.parts[: -len(tail)])] += 1
        if folders:
            most = max(folders.values())
            likely = [folder for folder in folders if folders[folder] == most]
            rank = max(tree.rank(folder / "x", split) for folder in likely)
            best = [folder for folder in likely if tree.rank(folder / "x", split) == rank]
            if len(best) > 1:
                raise UserError(
                    f"data: expected the {counted(len(names), 'pictures')} in one folder, "
                    f"found them in {few(best)}: leave one of these folders"
                )
            return best[0], cut
    return None


def choose(parts: Sequence[Part]) -> list[Part]:
    """Return the parts for training (train, or all), validation and test, from those of a layout.

    Raises:
        UserError: there are several for a split, or none for training.
    """
    by_split: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        by_split[part.split].append(part)
    if by_split["all"] and not by_split["val"]:
        by_split["train"] = by_split["all"]
    by_split["train"] = by_split["train"] or by_split["all"] or by_split[""]
    chosen = [by_split[split] for split in ("train", "val", "test") if by_split[split]]
    for several in chosen:
        if len(several) > 1:
            files = few([part.files[0] for part in several])
            raise UserError(
                f"data: expected one file of annotations for a split, got {files}: pass one as data"
            )
    if not by_split["train"]:
        splits = " and ".join(sorted({part.split for part in parts}))
        raise UserError(f"data: expected annotations for training, found only those for {splits}")
    train = by_split["train"][0]
    train.split = "train" if by_split["val"] else "all"
    return [several[0] for several in chosen]


def _words(name: str) -> list[str]:
    """Return the words of a name in small letters: train, images of ``trainImages2017``."""
    return [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]
