"""Split a COCO file in two."""

import random
from collections.abc import Collection, Mapping
from pathlib import Path

from dcnzoo.data.check import checked_coco
from dcnzoo.data.files import write_json
from dcnzoo.utils.errors import UserError


def select_images(content: dict, ids: Collection[int]) -> dict:
    """Select the images of a COCO file with these ids and their annotations; keep all categories."""
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [each for each in content["annotations"] if each["image_id"] in ids],
    }


def split_coco(file: str | Path, outs: tuple[Path, Path], share: float, seed: int = 0) -> tuple[dict, dict]:
    """Split the images of a file at random; return the rest, and the part of size ``share``.

    Both files contain all categories. The same seed gives the same parts.

    Raises:
        UserError: the file has problems (:func:`~dcnzoo.data.check.check_coco`) or too few images for two
            parts, or two of the three paths are the same. Nothing is written.
    """
    if len({Path(path).resolve() for path in (file, *outs)}) < 3:
        raise UserError(f"split: expected three different files, got {file}, {outs[0]} and {outs[1]}")
    if not 0 < share < 1:
        raise UserError(f"share: expected a number between 0 and 1, got {share}")
    content = checked_coco(file).edit()
    try:
        train, val = split_content(content, share, seed)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    write_json(train, outs[0])
    write_json(val, outs[1])
    return train, val


def split_content(
    content: dict, share: float, seed: int = 0, copies: Mapping[int, int] | None = None
) -> tuple[dict, dict]:
    """Split the content of a COCO file; see :func:`split_coco`.

    Args:
        copies: ids of images, and of the one of which each is a copy: they stay together.
    """
    copies = copies or {}
    ids = [image["id"] for image in content["images"] if image["id"] not in copies]
    number = min(max(round(share * len(ids)), 1), len(ids) - 1)
    if number < 1:
        raise UserError(f"images: expected at least 2 different ones, got {len(ids)}")
    chosen = set(random.Random(seed).sample(ids, number))  # nosec B311  # no secret
    chosen |= {copy for copy, original in copies.items() if original in chosen}
    rest = {image["id"] for image in content["images"]} - chosen
    return select_images(content, rest), select_images(content, chosen)
