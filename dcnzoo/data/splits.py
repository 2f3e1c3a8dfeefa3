"""Training and validation: no picture in both, and a random division of the others."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.text import counted

if TYPE_CHECKING:
    from dcnzoo.data.dataset import Picture

VALIDATION = 0.2  # share of the pictures, if the data has no validation set


def require_apart(splits: Mapping[str, Iterable[Picture]]) -> None:
    """Raise UserError if a picture, or a copy with the same bytes, is in two splits."""
    alike: dict[tuple, list[tuple[str, Path]]] = defaultdict(list)
    for name, pictures in splits.items():
        for picture in pictures:
            alike[(*picture.size, picture.file.stat().st_size)].append((name, picture.file))
    first: dict[bytes, tuple[str, Path]] = {}
    shared = []
    candidates = [each for files in alike.values() if len({name for name, _ in files}) > 1 for each in files]
    for name, file in candidates:
        other, copy = first.setdefault(hashlib.sha256(file.read_bytes()).digest(), (name, file))
        if other != name:
            shared.append(f"{file} of {name} = {copy} of {other}")
    if shared:
        got = f"{counted(len(shared), 'pictures')}: {', '.join(shared[:2])}"
        raise UserError(f"data: expected no picture in two splits, got {got}")


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
