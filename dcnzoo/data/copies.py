"""Pictures that are copies of others: with equal bytes, with equal pixels, or nearly so."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dcnzoo.data.annotations import Annotations
from dcnzoo.data.conversion import orientation
from dcnzoo.utils.checksums import file_digest
from dcnzoo.utils.progress import track
from dcnzoo.utils.text import counted

_LARGE = 256  # pixels; of a smaller JPEG, blocks of eight pixels differ from the thumbnail's
_UNREADABLE = -1000  # in thumbnails
_OF_SEVERAL = (".apng", ".gif", ".tif", ".tiff", ".webp")  # formats of several frames or pages
_HEAD = 65_536  # bytes that have the EXIF data
_MOST = 100  # near copies that are linked to a picture; the others are linked to these
_NEAR = 3  # grey levels by which the thumbnails of near copies differ at most


def copies_of(pictures: Iterable[Path], others: Iterable[Path]) -> dict[Path, Path]:
    """Return the pictures that have the bytes of others, each with the picture that it copies."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    for other in track(others, "comparing pictures"):
        sizes[other.stat().st_size].append(other)
    hashes: dict[int, dict[bytes, Path]] = {}
    copies = {}
    for picture in track(pictures, "comparing pictures"):
        size = picture.stat().st_size
        if sizes.get(size, [picture]) != [picture]:
            if size not in hashes:
                hashes[size] = {file_digest(other).digest(): other for other in reversed(sizes[size])}
            original = hashes[size].get(file_digest(picture).digest(), picture)
            if original != picture:
                copies[picture] = original
    return copies


class Pictures(NamedTuple):
    """The pictures of a split.

    Attributes:
        paths, sizes: their files and (width, height).
        thumbs: [N, 64], in grey levels.
        dark: those that use at most 12 of 16 bits: OpenCV loads the upper eight.
        turned: those that their EXIF orientation turns or mirrors.
        several: those with several frames or pages.
    """

    paths: Sequence[Path]
    sizes: Sequence[tuple[int, int]]
    thumbs: np.ndarray
    dark: Sequence[Path]
    turned: Sequence[Path]
    several: Sequence[Path]

    @property
    def unreadable(self) -> list[Path]:
        """Those that OpenCV cannot decode."""
        return [self.paths[number] for number in np.flatnonzero(self.thumbs[:, 0] <= _UNREADABLE).tolist()]


def read_pictures(part: Annotations) -> Pictures:
    """Read the thumbnails of a split's pictures; a large JPEG is decoded at an eighth."""
    import cv2

    paths, sizes = part.pictures, [(image["width"], image["height"]) for image in part.images]
    thumbs = np.full((len(paths), 64), _UNREADABLE, np.int16)
    dark, turned, several = list[Path](), list[Path](), list[Path]()
    for number, picture in enumerate(track(paths, "comparing pictures")):
        is_jpeg = picture.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")
        shrinks = is_jpeg and min(sizes[number]) >= _LARGE
        flag = cv2.IMREAD_REDUCED_GRAYSCALE_8 if shrinks else cv2.IMREAD_GRAYSCALE
        try:
            content = np.fromfile(picture, np.uint8)
            head = content[:_HEAD].tobytes()
            if b"Exif" in head or b"eXIf" in head:
                with Image.open(picture) as image:
                    if orientation(image) > 1:
                        turned.append(picture)
            grey: Any = cv2.imdecode(content, flag)
            if not is_jpeg and grey.max() < 16:
                deep: Any = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
                if deep.dtype == np.uint16 and deep.any():
                    dark.append(picture)
                    grey = deep.reshape(*deep.shape[:2], -1).mean(2) * 255 / deep.max()
            thumbs[number] = cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA).ravel()
            if picture.suffix.lower() in _OF_SEVERAL:
                with Image.open(picture) as image:
                    if getattr(image, "n_frames", 1) > 1:
                        several.append(picture)
        except (OSError, AttributeError, cv2.error):
            thumbs[number, 0] -= number % 20_000  # like no other
    return Pictures(paths, sizes, thumbs, dark, turned, several)


def near(thumbs: np.ndarray, groups: Sequence[object]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each picture, and those of later ones of its group with nearly equal thumbnails."""
    by_group: dict[object, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        by_group[group].append(number)
    for numbers in map(np.array, by_group.values()):
        means = thumbs[numbers].mean(1)
        numbers, means = numbers[np.argsort(means)], np.sort(means)
        ends = np.searchsorted(means, means + _NEAR, side="right")
        for place, end in enumerate(ends.tolist()):
            others = numbers[place + 1 : end]
            differences = np.abs(thumbs[others] - thumbs[numbers[place]]).max(1, initial=0)
            yield int(numbers[place]), others[differences <= _NEAR]


def copies_between(first: Pictures, second: Pictures) -> tuple[list[Path], list[Path]]:
    """Return the pictures of the first split that have the pixels of one of the second, and those that are
    nearly equal to one, or to its mirror image.

    Only those are decoded whose size and thumbnail agree with another's.
    """
    equal, similar, digests = list[Path](), list[Path](), dict[int, bytes]()
    means, shapes = second.thumbs.mean(1), np.array(shapes_of(second.sizes))
    order = np.argsort(means)
    for path, size, thumb in zip(*first[:3], strict=True):
        low, high = np.searchsorted(means[order], thumb.mean() + np.array([-_NEAR, _NEAR]))
        window = order[low:high]
        window = window[shapes[window] == shapes_of([size])]
        views = np.stack([thumb, thumb.reshape(8, 8)[:, ::-1].ravel()])
        off = np.abs(second.thumbs[window, None] - views).max(2).min(1, initial=_NEAR + 1)
        others = window[off <= _NEAR].tolist()
        if not others or thumb[-1] == _UNREADABLE:
            continue
        same = [n for n in others if second.sizes[n] == size]
        for n in same:
            digests[n] = digests.get(n) or _pixel_digest(second.paths[n])
        is_equal = bool(same) and _pixel_digest(path) in {digests[n] for n in same}
        (equal if is_equal else similar).append(path)
    return equal, similar


def copies_within(pictures: Pictures) -> list[tuple[int, int]]:
    """Return the numbers of pictures with the pixels of an earlier one, each with that one's number."""
    alike: dict[object, list[int]] = defaultdict(list)
    for number, (size, thumb) in enumerate(zip(pictures.sizes, pictures.thumbs, strict=True)):
        alike[size, thumb.tobytes()].append(number)
    pairs = []
    for numbers in (each for each in alike.values() if len(each) > 1):
        firsts: dict[bytes, int] = {}
        for number in numbers:
            first = firsts.setdefault(_pixel_digest(pictures.paths[number]), number)
            if first != number:
                pairs.append((number, first))
    return pairs


def groups_of_copies(pictures: Pictures) -> tuple[list[int], list[str]]:
    """Group pictures that are nearly equal, or of one origin; also return what was decided."""
    number, origins, notes = len(pictures.paths), dict[str, int](), list[str]()
    groups, certain = [*range(number)], copies_within(pictures)

    def first(n: int) -> int:
        while groups[n] != n:
            groups[n] = n = groups[groups[n]]
        return n

    for n, picture in enumerate(pictures.paths):
        if origin := stem_of_origin(picture):
            certain.append((n, origins.setdefault(origin, n)))
    similar = near(pictures.thumbs, shapes_of(pictures.sizes))
    for pairs in (certain, ((n, other) for n, others in similar for other in others[:_MOST].tolist())):
        before = [*groups]
        for n, other in pairs:
            groups[first(n)] = first(other)
        largest = max(Counter(map(first, range(number))).values())
        if largest > number / 2:  # a chain, as of a camera that does not move
            groups = before
            what = f"{counted(largest, 'pictures')} are nearly equal, more than half"
            notes.append(f"{what}: they are divided at random")
            break
    groups = [*map(first, range(number))]
    if kept := number - len({*groups}):
        notes.append(f"pictures that stay with nearly equal ones, or with ones of their origin: {kept}")
    return groups, notes


def shapes_of(sizes: Iterable[tuple[int, int]]) -> list[int]:
    """Return a number for the ratio of each width to its height."""
    return [round(20 * width / height) for width, height in sizes]


def _pixel_digest(picture: Path) -> bytes:
    """Return a checksum of the pixels, as they are loaded."""
    try:
        with Image.open(picture) as image:
            pixels = ImageOps.exif_transpose(image)
            if not pixels.mode.startswith("I"):
                pixels = pixels.convert("RGB")
            return hashlib.sha256(pixels.tobytes()).digest()
    except Exception:  # the check of the pictures explains it
        return os.fsencode(picture)


def stem_of_origin(picture: Path) -> str:
    """Return the name of the picture of which Roboflow made this one: ``x_jpg`` of ``x_jpg.rf.HASH.jpg``."""
    return picture.stem.partition(".rf.")[0] if ".rf." in picture.name else ""
