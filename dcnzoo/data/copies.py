"""Pictures that are copies of others: with equal bytes, with equal pixels, or nearly so."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dcnzoo.utils.files import file_digest
from dcnzoo.utils.progress import track

_LARGE = 256  # pixels; of a smaller JPEG, blocks of eight pixels differ from the thumbnail's
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


def thumbnails(pictures: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return a thumbnail of each picture, [N, 64], in grey levels. A large JPEG is decoded at an eighth."""
    result = np.full((len(pictures), 64), -1000, np.int16)  # of a file that cannot be read: like no other
    for number, (picture, size) in enumerate(
        track([*zip(pictures, sizes, strict=True)], "comparing pictures")
    ):
        try:
            with Image.open(picture) as image:
                if min(size) >= _LARGE:
                    image.draft("L", (size[0] // 8, size[1] // 8))
                small = ImageOps.exif_transpose(image).convert("L").resize((8, 8), Image.Resampling.BOX)
            result[number] = np.asarray(small, np.int16).ravel()
        except Exception:  # each decoder has its own errors; the check of the pictures explains them
            result[number, 0] -= number
    return result


def near_pairs(thumbs: np.ndarray, groups: Sequence[object]) -> list[tuple[int, int]]:
    """Return the pairs of equal group whose thumbnails are nearly equal."""
    by_group: dict[object, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        by_group[group].append(number)
    pairs = []
    for numbers in map(np.array, by_group.values()):
        means = thumbs[numbers].mean(1)
        numbers, means = numbers[np.argsort(means)], np.sort(means)
        ends = np.searchsorted(means, means + _NEAR, side="right")
        for place, end in enumerate(ends.tolist()):
            others = numbers[place + 1 : end]
            near = np.abs(thumbs[others] - thumbs[numbers[place]]).max(1, initial=0) <= _NEAR
            pairs += [(int(numbers[place]), int(other)) for other in others[near]]
    return pairs


def same_pixels(first: Path, second: Path) -> bool:
    """Whether two pictures have the same pixels, as they are loaded."""
    try:
        images = []
        for file in (first, second):
            with Image.open(file) as image:
                images.append(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    except Exception:
        return False
    return np.array_equal(images[0], images[1])


def stem_of_origin(picture: Path) -> str:
    """Return the name of the picture of which Roboflow made this one: ``x_jpg`` of ``x_jpg.rf.HASH.jpg``."""
    return picture.stem.partition(".rf.")[0] if ".rf." in picture.name else ""
