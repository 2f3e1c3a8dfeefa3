"""Split a COCO file in two."""

import filecmp
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dcnzoo.data.check import checked_coco
from dcnzoo.data.copies import groups_of_copies, read_pictures
from dcnzoo.data.files import write_json
from dcnzoo.utils.errors import UserError, install_command
from dcnzoo.utils.files import note, replacing, require_new
from dcnzoo.utils.formats import image_folder
from dcnzoo.utils.text import counted


def select_images(content: dict, ids: Collection[int]) -> dict:
    """Select the images of a COCO file with these ids and their annotations; keep all categories."""
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [each for each in content["annotations"] if each["image_id"] in ids],
    }


def split_coco(
    file: str | Path, outs: tuple[Path, Path], share: float, seed: int = 0, force: bool = False
) -> tuple[dict, dict]:
    """Split the images of a file at random; return the rest, and the part of size ``share``.

    Both files contain all categories. The same seed gives the same parts. Copies and near copies are in
    one part, if the pictures are beside the file.

    Args:
        force: replace files with another content.

    Raises:
        UserError: the file has problems (:func:`~dcnzoo.data.check.check_coco`) or too few images for two
            parts, two of the three paths are the same, or a file exists. Nothing is written.
    """
    if len({Path(path).resolve() for path in (file, *outs)}) < 3:
        raise UserError(f"split: expected three different files, got {file}, {outs[0]} and {outs[1]}")
    if not 0 < share < 1:
        raise UserError(f"share: expected a number between 0 and 1, got {share}")
    report = checked_coco(file)
    folder = image_folder(Path(file).absolute(), [each["file_name"] for each in report.images])
    groups, why = None, f"the pictures of {file} are not beside it"
    if folder is not None:
        report.folder = folder
        try:
            groups, _ = groups_of_copies(read_pictures(report))
        except ModuleNotFoundError as error:  # OpenCV
            why = f"{error}; {install_command(error)}"
    if groups is None:
        note(f"copies of a picture may be in both parts: {why}")
    try:
        train, val = split_content(report.edit(), share, seed, groups)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    with replacing(outs[0]) as first, replacing(outs[1]) as second:
        write_json(train, first)
        write_json(val, second)
        written = dict(zip(outs, (first, second), strict=True))

        def is_equal(out: Path) -> bool:  # of a call that was killed between the two
            return filecmp.cmp(out, written[out], shallow=False)

        require_new("split", *outs, force=force, own=is_equal)
    return train, val


def split_content(
    content: dict, share: float, seed: int = 0, groups: Sequence[int] | None = None
) -> tuple[dict, dict]:
    """Split the content of a COCO file; each class has objects in the first part, the second part has some.

    Args:
        groups: the number of each image's group, whose images stay together.

    Raises:
        UserError: that is not possible.
    """
    ids = [image["id"] for image in content["images"]]
    members: dict[int, list[int]] = defaultdict(list)
    for image, group in zip(ids, range(len(ids)) if groups is None else groups, strict=True):
        members[group].append(image)
    names = [*members]
    number = min(max(round(share * len(names)), 1), len(names) - 1)
    if number < 1:
        raise UserError(f"images: expected at least 2 different ones, got {len(names)}")
    generator = random.Random(seed)  # nosec B311  # no secret
    chosen = generator.sample(names, number)
    others = [name for name in names if name not in {*chosen}]
    order = [*chosen, *generator.sample(others, len(others))]
    val = {image for name in _with_objects(order, number, members, content) for image in members[name]}
    return select_images(content, {*ids} - val), select_images(content, val)


def _with_objects(
    order: Sequence[int], number: int, members: Mapping[int, Sequence[int]], content: dict
) -> list[int]:
    """Return the first groups that can leave the training set without taking the last object of a class."""
    names = {image: name for name in order for image in members[name]}
    own: dict[int, Counter[int]] = {name: Counter() for name in order}  # objects by class
    left: Counter[int] = Counter()
    for entry in content["annotations"]:
        if not (entry.get("iscrowd") or entry.get("ignore")):
            own[names[entry["image_id"]]][entry["category_id"]] += 1
            left[entry["category_id"]] += 1
    chosen: list[int] = []
    with_objects: list[int] = []
    for name in order:
        if all(left[each] > count for each, count in own[name].items()):
            (with_objects if own[name] else chosen).append(name)
            left.subtract(own[name])
        if with_objects and len(chosen) + len(with_objects) >= number:
            break
    if not with_objects:
        pictures = sum(bool(each) for each in own.values())
        raise UserError(
            "data: expected objects for training and for validation, found "
            f"{counted(pictures, 'pictures')} with objects, each the only one of a class: annotate at least "
            "1 more picture with an object of a class that has one"
        )
    return [*with_objects, *chosen][:number]
