"""What all layouts share: the files below a folder, splits in names, pictures of annotation files."""

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dcnzoo.data.annotations import Annotations, read_coco
from dcnzoo.data.conversion import CocoBuilder, Reading
from dcnzoo.data.files import InvalidAnnotation
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.formats import PICTURES, walk
from dcnzoo.utils.marks import is_config_of_training, is_detection
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
_WORD = "[A-Z]?[a-z]+|[A-Z]+"
BY_OPTION = "by --leave-out"
HIDDEN = "hidden"
TRAININGS = "written by trainings"
PREDICTIONS = "predictions"
_HASH = re.compile("^[0-9a-f]{8}-(?=.)")  # before the name of a picture that was uploaded to Label Studio


@dataclass(frozen=True)
class ReadOptions:
    """How annotations are read.

    Attributes:
        zero_based: the coordinates of Pascal VOC are edges counted from 0, not pixels counted from 1.
        clip: clip objects to the image.
        skip_invalid: leave out objects and images with problems.
        drop_scores: use predictions, which have scores, as annotations.
        layout: the format that is used, if a folder has several.
        leave_out: patterns of paths below the folder, such as ``old/*``, that are left out.
        extract: folder for images that exist only inside LabelMe's JSON files.
        classes: names in the order of their labels; None: those of the data.
        difficult: objects that Pascal VOC marks as difficult: ``ignore`` sets COCO's ``iscrowd``, with which
            they do not count in training and evaluation; ``keep`` or ``drop``.
    """

    zero_based: bool = False
    clip: bool = False
    skip_invalid: bool = False
    drop_scores: bool = False
    layout: str = ""
    leave_out: tuple[str, ...] = ()
    extract: Path | None = None
    classes: tuple[str, ...] | None = None
    difficult: str = "ignore"


AS_THEY_ARE = ReadOptions()


@dataclass(eq=False)
class Part:
    """A split of a data set on the disk.

    Attributes:
        split: train, val or test; ``all`` if the data has no splits, or empty if no name says it.
        files: those with the annotations, or those that list them.
        parse: reads them.
        description: the file that describes the data set; parts with another are of another data set.
        rest: whether the part has what the others of the layout leave out.
        reason: why the data's own description leaves it out.
        members: the parts that it unites.
    """

    split: str
    files: tuple[Path, ...]
    parse: Callable[[ReadOptions], CocoBuilder | Annotations]
    description: Path | None = None
    rest: bool = False
    reason: str = ""
    members: tuple["Part", ...] = ()
    _read: dict[ReadOptions, Annotations] = field(default_factory=dict)

    def read(self, options: ReadOptions = AS_THEY_ARE) -> Annotations:
        """Read the annotations, once."""
        if options not in self._read:
            result = self.parse(options)
            self._read[options] = result if isinstance(result, Annotations) else _built(result, options)
        return self._read[options]


def _built(result: CocoBuilder, options: ReadOptions) -> Annotations:
    if options.clip and result.clipped:
        result.repaired.append(f"objects clipped to their images: {result.clipped}")
    if options.skip_invalid and (problems := result.problems):
        result.repaired.append(f"problems skipped: {len(problems)}, such as {problems[0]}")
        result.problems = []
    content = result.content()
    values = {each.name: getattr(result, each.name) for each in fields(Reading)}
    return Annotations(Path(), content, folder=result.folder, **values)


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
    parse: Callable[[Path, dict[str, Path], ReadOptions], CocoBuilder | Annotations],
) -> list[Part]:
    """Return a part for each file that names pictures; ``parse`` gets it and its :func:`pictures_of`."""

    def parse_file(file: Path, split: str, options: ReadOptions) -> CocoBuilder | Annotations:
        return parse(file, pictures_of(names[file], tree, split, file, names), options)

    splits = {file: tree.part_of(file, own=True) for file in names}
    return [Part(splits[file], (file,), functools.partial(parse_file, file, splits[file])) for file in names]


@functools.cache
def split_of(name: str) -> str:
    """Return the split that a word of a name states: ``instances_train2017`` is train; empty if none does.

    ``test`` takes precedence, because nothing that is named like it may be trained on.
    """
    splits = {SPLITS[word] for word in _words(name) if word in SPLITS}
    if "test" in splits:
        return "test"
    return "all" if len(splits) > 1 else next(iter(splits), "")


@functools.cache
def _without_split(name: str) -> str:
    """Return a name with a star for each word of a split: ``instances_*2017``."""
    starred = re.sub(_WORD, lambda word: "*" if word[0].lower() in SPLITS else word[0].lower(), name)
    return re.sub(r"\*(?:[^a-z]*\*)+", "*", starred)


def path_parts(name: str) -> tuple[str, ...]:
    """Return the parts of a path that may have been written on Windows, without drive, ``.`` and ``..``."""
    parts = re.sub("^[A-Za-z]:", "", name.replace("\\", "/")).split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))


def normal(name: str) -> str:
    """Return a name in one Unicode form and in small letters."""
    return unicodedata.normalize("NFC", name).casefold()


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    """Whether a pattern is that of a path, or of a folder above it."""
    return any(each.match(pattern) for each in (path, *path.parents[:-1]) for pattern in patterns)


class Names:
    """Files by a name; in a folder without it, the only one that differs in Unicode form or in capitals."""

    def __init__(self, files: Iterable[Path], key: Callable[[Path], str]) -> None:
        self._key = key
        self._files: dict[str, dict[Path, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for file in files:
            self._files[normal(key(file))][file.parent].append(file)

    def get(self, name: str) -> list[Path]:
        """Return the files with this name."""
        result = []
        for files in self._files.get(normal(name), {}).values():
            exact = [file for file in files if self._key(file) == name]
            result += exact or (files if len({*map(self._key, files)}) == 1 else [])
        return result


class Tree:
    """The files below a folder, sorted, without hidden ones and what detectors and trainings have written.

    Args:
        root: a folder.
        depth: of the subfolders that are read; by default all.
        leave_out: patterns of paths below the folder.
        detections: whether detections of dcnzoo are used; the pictures that it has drawn are not.

    Attributes:
        description: the file like data.yaml, if it was chosen.
        asked: the split that is wanted, empty for all pictures together; None: all splits.
        left_out: the files and folders of each reason.
        notes: about what a description names.
        is_file: whether a file was chosen; the annotations beside it are left out.
        inexact: names that were found in another Unicode form or with other capitals.
    """

    def __init__(
        self,
        root: Path,
        depth: int | None = None,
        leave_out: Sequence[str] = (),
        detections: bool = False,
    ) -> None:
        self.root, self.files = root, list[Path]()
        self.description: Path | None = None
        self.asked: str | None = None
        self.left_out: dict[str, list[Path]] = defaultdict(list)
        self.notes: list[str] = []
        self.inexact = set[str]()
        self._nearest: dict[Path, tuple[bool, int]] = {}
        self._likelihoods: dict[tuple[Path, Path, str], tuple[int, ...]] = {}
        self.is_file = False
        self.damaged: dict[Path, InvalidAnnotation] = {}  # JSON files
        self.labels: dict[Path, Path] | None = None  # of YOLO, by picture, when they are known
        for folder, folders, names in walk(root, self.left_out[HIDDEN]):
            if folder != root:
                programs = (folder / name for name in names if name.endswith(".py"))
                is_training = "last_checkpoint" in names or any(map(is_config_of_training, programs))
                if is_training or is_detection(folder):
                    if not is_training and detections:
                        self.files += [folder / name for name in names if name.endswith(".json")]
                    folders.clear()
                    self.left_out[TRAININGS if is_training else PREDICTIONS].append(folder)
                    continue
            if len(folder.relative_to(root).parts) == depth:
                folders.clear()
            files = [folder / name for name in names]
            out = {file for file in files if _matches(file.relative_to(root), leave_out)} if leave_out else ()
            self.left_out[BY_OPTION] += sorted(out)
            self.files += [file for file in files if file not in out]
        if leave_out and not self.left_out[BY_OPTION]:
            raise UserError(f"leave_out: expected patterns of files in {root}, got {few(leave_out)} of none")
        self.files.sort()

    def ending(self, *suffixes: str) -> list[Path]:
        """Return the files with these endings, in small or capital letters."""
        return [file for file in self.files if file.suffix.lower() in suffixes]

    @functools.cached_property
    def pictures(self) -> list[Path]:
        """The files of pictures."""
        return self.ending(*PICTURES)

    @functools.cached_property
    def by_stem(self) -> Names:
        """The pictures by their names without ending."""
        return Names(self.pictures, lambda file: file.stem)

    @functools.cached_property
    def by_name(self) -> Names:
        """The pictures by their names."""
        return Names(self.pictures, lambda file: file.name)

    @functools.cached_property
    def annotations(self) -> Names:
        """The files with the annotations of a picture by their names without ending."""
        return Names(self.ending(".xml", ".json"), lambda file: file.stem)

    @functools.cached_property
    def json(self) -> dict[Path, Any]:
        """The contents of the JSON files, without the pictures inside LabelMe's; None if it is damaged."""
        files, contents = self.ending(".json"), dict[Path, Any]()
        # a bar for many small files: of a large one, only the pictures are read
        for file in files if len(files) < 99 else track(files, "reading"):
            try:
                contents[file] = self.json_of(file)
            except InvalidAnnotation as error:
                contents[file], self.damaged[file] = None, error
        return contents

    @staticmethod
    def json_of(file: Path) -> Any:
        """Return the content of a JSON file, see :func:`dcnzoo.data.annotations.read_coco`."""
        content = read_coco(file)
        if isinstance(content, dict):
            content.pop("imageData", None)
        return content

    def parents(self, file: Path) -> tuple[str, ...]:
        """Return the names of the folders between the root and a file."""
        return file.relative_to(self.root).parts[:-1] if file.is_relative_to(self.root) else ()

    @functools.cached_property
    def _beside(self) -> dict[tuple[int, str], set[str]]:
        """The splits of the names that differ in this word only, by their depth and the rest of the name."""
        splits: dict[tuple[int, str], set[str]] = defaultdict(set)
        names = {(depth, name) for file in self.files for depth, name in enumerate(self.parents(file))}
        others = (file for file in self.files if file.suffix.lower() not in PICTURES)
        for depth, name in names | {(len(self.parents(file)), file.stem) for file in others}:
            if split := split_of(name):
                splits[depth, _without_split(name)].add(split)
        return splits

    def split_of(self, file: Path, own: bool = True) -> str:
        """Return the split that the nearest folder of a file names; with ``own``, its own name comes first.

        A word counts if another name at that depth differs in this word only: ``train/`` beside ``car/`` is
        no split.
        """
        names = [*self.parents(file)]
        if own:
            names.append(file.stem)
        for depth, name in reversed([*enumerate(names)]):
            split = split_of(name)
            if split and (self.asked or len(self._beside[depth, _without_split(name)]) > 1):
                return split
        return ""

    def part_of(self, file: Path, own: bool = False) -> str:
        """Return the split whose annotations a file has, if the data are divided; see :meth:`split_of`."""
        return "" if self.asked == "" else self.split_of(file, own)

    def allows(self, picture: Path, split: str) -> bool:
        """Whether a picture does not lie in a folder that is named like another split."""
        other = self.split_of(picture, own=False)
        return not split or other in ("", "all", split) or (split == "all" and other != "test")

    def nearness(self, file: Path, folder: Path) -> tuple[bool, int]:
        """Return how near a file is to a folder: whether it is in it, and how many folders are above both."""
        names = Counter(self.parents(file)) & Counter(self.parents(folder / "x"))
        return (folder == file.parent, names.total())

    def likelihood(self, picture: Path, file: Path, split: str, votes: int = 0) -> tuple[int, ...]:
        """Return values that are larger, the more likely a picture is one of an annotation file.

        The first one is 0 for masks and the like. The first three are nearness.

        Args:
            votes: the number of the file's pictures that the same folder has.
        """
        key = picture.parent, file.parent, split
        if key not in self._likelihoods:
            words = set(_words("/".join(self.parents(picture))))
            kind = 0 if words & _OTHERS else 2 if words & _PICTURES else 1
            is_inside, above = self.nearness(file, picture.parent)
            is_of_split = self.split_of(picture, own=False) == split
            self._likelihoods[key] = kind > 0, is_inside, above, is_of_split, kind
        near, rank = self._likelihoods[key][:3], self._likelihoods[key][3:]
        return (*near, votes, *rank)

    def belongs(self, picture: Path, file: Path, rivals: Iterable[Path]) -> bool:
        """Whether no other annotation file is nearer to a picture, or no folder of pictures to this file."""
        if file.parent not in self._nearest:
            folders = {picture.parent for picture in self.pictures}
            values = (self.nearness(file, folder) for folder in folders)
            self._nearest[file.parent] = max(values, default=(False, 0))
        own = self.nearness(file, picture.parent)
        return own == self._nearest[file.parent] or all(
            self.nearness(rival, picture.parent) <= own for rival in rivals
        )

    def best(
        self, pictures: Iterable[Path], file: Path, split: str, rivals: Iterable[Path] = ()
    ) -> list[Path]:
        """Return the pictures that most likely belong to an annotation file: one, or several that tie.

        Args:
            rivals: other annotation files of that name; see :meth:`belongs`.
        """
        allowed = [picture for picture in pictures if self.allows(picture, split)]
        likely = _largest(allowed, lambda picture: self.likelihood(picture, file, split))
        return [picture for picture in likely if self.belongs(picture, file, rivals)]

    def of(self, file: Path, named: str, split: str) -> list[Path]:
        """Return the pictures that may be that of an annotation file: by its own name, by the name in it."""
        rivals, last = self.annotations.get(file.stem), "".join(path_parts(named)[-1:])
        paths = self.best(self.by_stem.get(file.stem), file, split, rivals)
        others = self.best(self.by_name.get(last), file, split, rivals)
        if len(others) != 1 or others[0] not in paths:
            others = [*dict.fromkeys([*paths, *others])]
        if len(others) == 1 and others[0].name != last and others[0].stem != file.stem:
            self.inexact.add(file.name)
        return others


def _largest(paths: Iterable[Path], key: Callable[[Path], tuple[int, ...]]) -> list[Path]:
    """Return the paths with the largest value."""
    values = {path: key(path) for path in paths}
    most = max(values.values(), default=())
    return [path for path in values if values[path] == most]


def _variants(name: str) -> list[str]:
    """Return a name as it was stored, without the address before it, without Label Studio's hash."""
    name = name.partition("?d=")[2] or name
    *folders, last = path_parts(unquote(name)) or ("",)
    return [*dict.fromkeys((name, unquote(name), "/".join((*folders, _HASH.sub("", last)))))]


def pictures_of(
    names: Iterable[str], tree: Tree, split: str, file: Path, rivals: Iterable[Path]
) -> dict[str, Path]:
    """Find the pictures that a file of annotations names; those that do not exist are missing in the result.

    A picture is in the folder that contains most of them, or it is the only one with its name; of several,
    that with most folders in common with the file. Folders that are named like another split, or that have
    more in common with another file, are left out. If no name exists below any folder, as with paths of
    another machine, the names are shortened from the left.

    Raises:
        UserError: several folders qualify.
    """
    paths, choices = dict[str, tuple[str, ...]](), dict[str, dict[Path, Path]]()
    for name in names:
        variants = [*map(path_parts, _variants(name))]
        paths[name] = next((each for each in variants if each and tree.by_name.get(each[-1])), variants[0])
    for cut in range(max(map(len, paths.values()), default=0)):
        for name, parts in paths.items():
            if not (tail := parts[min(cut, len(parts) - 1) :]):
                continue
            above, end = [*map(normal, tail[:-1])], -len(tail)
            near = _largest(
                (
                    picture
                    for picture in tree.by_name.get(tail[-1])
                    if [*map(normal, picture.parts[end:-1])] == above and tree.allows(picture, split)
                ),
                lambda picture: tree.likelihood(picture, file, split)[:3],
            )
            if near:
                choices[name] = {Path(*picture.parts[:end]): picture for picture in near}
        if choices:
            break
    votes = Counter(folder for own in choices.values() for folder in own)
    most, pictures, ambiguous = max(votes.values(), default=0), dict[str, Path](), list[str]()
    for name, own in choices.items():
        if not any(votes[folder] == most for folder in own):  # not that of another file, and no mask
            own = {
                folder: picture
                for folder, picture in own.items()
                if tree.likelihood(picture, file, split)[0] and tree.belongs(picture, file, rivals)
            }
        likelihoods = {f: tree.likelihood(picture, file, split, votes[f]) for f, picture in own.items()}
        likely = _largest(own, likelihoods.__getitem__)
        if len(likely) > 1 or (len(own) > 1 and votes[likely[0]] < most):
            ambiguous.append(name)
        elif likely:
            pictures[name] = own[likely[0]]
    if ambiguous:
        raise UserError(
            f"data: expected each of the {counted(len(choices), 'pictures')} in one folder, found "
            f"{few(ambiguous, 2)} in {few([*choices[ambiguous[0]]])}: leave_out=PATTERN leaves out a folder"
        )
    tree.inexact |= {name for name, picture in pictures.items() if picture.name != paths[name][-1]}
    return pictures


def _words(name: str) -> list[str]:
    """Return the words of a name in small letters: train, images of ``trainImages2017``."""
    return [word.lower() for word in re.findall(_WORD, name)]
