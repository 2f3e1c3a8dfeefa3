"""Training and validation: no picture in both, and a random division of the others."""

from __future__ import annotations

import functools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import file_digest
from dcnzoo.utils.text import counted

if TYPE_CHECKING:
    from dcnzoo.data.dataset import Picture

VALIDATION = 0.2  # share of the pictures, if the data has no validation set


def require_apart(splits: Mapping[str, Iterable[Picture]]) -> None:
    """Raise UserError if a picture, or a copy with the same bytes, is in two splits."""
    files = {name: [picture.file for picture in pictures] for name, pictures in splits.items()}
    digest = functools.cache(file_digest)  # a picture may be compared with those of two splits
    shared = [
        f"{file} of {name} = {copy} of {other}"
        for other, name in combinations(files, 2)
        for file, copy in copies(files[name], files[other], digest).items()
    ]
    if shared:
        got = f"{counted(len(shared), 'pictures')}: {', '.join(shared[:2])}"
        raise UserError(f"data: expected no picture in two splits, got {got}")


def copies(
    files: Iterable[Path], others: Iterable[Path], digest: Callable[[Path], str] = file_digest
) -> dict[Path, Path]:
    """Return the files with the bytes of another one, with that one. Only files of one length are read."""
    lengths: dict[int, list[Path]] = defaultdict(list)
    for other in others:
        lengths[other.stat().st_size].append(other)
    digests: dict[int, dict[str, Path]] = {}  # length → digest → one of the others
    found = {}
    for file in files:
        if alike := lengths.get(length := file.stat().st_size):
            if length not in digests:
                digests[length] = {digest(other): other for other in alike}
            if copy := digests[length].get(digest(file)):
                found[file] = copy
    return found


def divide(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Divide pictures at random (seed 0) into train and val.

    Pictures that Roboflow made from one original stay together. Val has at least one picture with objects;
    the last picture of a class stays in train.

    Raises:
        UserError: a part would have no object.
    """
    classes: dict[object, set[str]] = defaultdict(set)  # of the pictures of one original
    for picture in pictures:
        names = (each.name for each in picture.objects.values() if not each.iscrowd)
        classes[_original_of(picture)].update(names)
    left = Counter(name for own in classes.values() for name in own)
    number, chosen = max(1, round(VALIDATION * len(classes))), set[object]()
    order = random.Random(0).sample([*classes], len(classes))  # nosec B311

    def is_spare(key: object) -> bool:  # whether train keeps all its classes without it
        return all(left[name] > 1 for name in classes[key])

    first = next((key for key in order if classes[key] and is_spare(key)), None)
    for key in sorted(order, key=lambda key: key != first):
        if number > 0 and is_spare(key):
            left.subtract(classes[key])
            chosen.add(key)
            number -= 1
    if first is None or not any(left.values()):
        raise UserError("data: expected objects for training and validation: annotate more pictures")
    parts: dict[str, list[Picture]] = {"train": [], "val": []}
    for picture in pictures:
        parts["val" if _original_of(picture) in chosen else "train"].append(picture)
    return parts


def _original_of(picture: Picture) -> str | Path:
    """Return the name before Roboflow's ``.rf.``; for other files, their path."""
    name, mark, _ = picture.file.name.partition(".rf.")
    return name if mark else picture.file
