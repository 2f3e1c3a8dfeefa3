"""A page that shows annotated pictures before a training. Requires matplotlib and Jinja2, but not torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image
from pycocotools import mask as coco_mask

from dcnzoo.data.coco_file import checked_rle
from dcnzoo.data.dataset import Dataset, Object
from dcnzoo.data.dataset import Picture as Annotated
from dcnzoo.data.reading import read as read_data
from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.pictures import read, reverse_channels
from dcnzoo.report import page
from dcnzoo.report.page import Picture, Section, in_words
from dcnzoo.report.plots import plot_sides
from dcnzoo.utils.files import require_new, write_text
from dcnzoo.utils.text import counted

SHEET = "sheet.html"
_PICTURES, _CLASSES = 16, 40  # most pictures, and most classes with a crop
_SIDE = 800  # most pixels of a picture's longer side in the page


def write_sheet(
    data: str | os.PathLike[str] | Mapping[str, Dataset],
    out: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    force: bool = False,
) -> Path:
    """Write a page with annotated pictures, the sizes of the objects, and the classes; return its path.

    Args:
        data: a folder or file as docs/train_your_data.md describes; or the splits of its data set.
        out: the HTML file.
        size: the longer side of the pictures in the training, in pixels, or the most pixels of their longer
            and shorter side (None: as in the files).
        force: replace ``out``.

    Raises:
        UserError: the data cannot be read, or ``out`` exists.
    """
    out = require_new("sheet", out, force=force)
    splits = data if isinstance(data, Mapping) else read_data(data).split()
    train = splits["train"]
    sections = [_show_pictures(train), _show_sides(train, size), _show_classes(splits)]
    title = f"Annotated pictures in {train.folder}"
    write_text(out, page.render("report.html", title=title, sections=sections))
    return out


def _show_pictures(split: Dataset) -> Section:
    pictures = split.pictures
    chosen = np.linspace(0, len(pictures) - 1, min(_PICTURES, len(pictures))).astype(int)
    images = []
    for picture in (pictures[i] for i in chosen):
        objects = annotated(picture, [*split.classes])
        drawn = objects.draw(with_scores=False, every_label=True)
        drawn.thumbnail((_SIDE, _SIDE))
        text = f"{picture.file.name}: {in_words(objects.names)}"
        images.append(Picture(drawn, text, f"{picture.file.name} with boxes and names"))
    text = f"The {counted(len(pictures), 'pictures')} to train on."
    if len(images) < len(pictures):
        text = f"{len(images)} of the {counted(len(pictures), 'pictures')} to train on, at equal distances."
    return Section("Pictures", text, [page.pictures(images, "small")])


def _show_sides(split: Dataset, size: int | tuple[int, int] | None) -> Section:
    """Compare the sides of objects with those after the resize."""
    sides, sizes = map(np.array, zip(*split.sides, strict=True))
    curves = {"in the files": sides}
    if size is not None:
        longer, shorter = (size, size) if isinstance(size, int) else size
        factors = np.minimum(longer / sizes.max(1), shorter / sizes.min(1))  # as MMDetection's Resize
        curves[f"at {longer} pixels" if longer == shorter else f"at {longer} × {shorter}"] = sides * factors
    text = "The number of objects by their side, the root of the box's area. Crowds are not counted."
    charts = page.charts([plot_sides("sides of the objects", curves)])
    return Section("Sizes of the objects", text, [charts])


def _show_classes(splits: Mapping[str, Dataset]) -> Section:
    """Show the numbers of objects, and the object of middle size of each class."""
    train = splits["train"]
    numbers = [split.per_class for split in splits.values()]
    rows = [["class", *splits], *([name, *(f"{each[name]:,}" for each in numbers)] for name in train.classes)]
    by_class: dict[str, list[tuple[Annotated, Object]]] = {name: [] for name in train.classes}
    for picture in train:
        for each in picture.objects.values():
            by_class[each.name].append((picture, each))
    crops = []
    for name, objects in [(name, objects) for name, objects in by_class.items() if objects][:_CLASSES]:
        objects.sort(key=lambda pair: pair[1].area)
        picture, each = objects[len(objects) // 2]
        x, y, width, height = each.bbox
        margin = 0.2 * max(width, height)
        corners = np.array([x - margin, y - margin, x + width + margin, y + height + margin])
        left, top, right, bottom = corners.round().astype(int).clip(0, [*picture.size] * 2).tolist()
        crop = reverse_channels(read(picture.file))[top:bottom, left:right]
        drawn = Image.fromarray(crop)
        drawn.thumbnail((_SIDE // 2, _SIDE // 2))
        alt = f"An object of the class {name} in {picture.file.name}"
        crops.append(Picture(drawn, f"{name}: {counted(len(objects), 'objects')}", alt))
    parts: list[Markup] = [page.table(rows), page.pictures(crops, "small")]
    text = f"The object of middle size of each class to train on, of at most {_CLASSES} classes."
    return Section("Classes", text, parts)


def annotated(picture: Annotated, classes: list[str]) -> Detections:
    """Return the objects of a picture, with scores of 1; without masks if an object has none."""
    objects = [*picture.objects.values()]
    boxes = np.array([each.bbox for each in objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([classes.index(each.name) for each in objects], int)
    masks: Any = None
    if objects and all(each.segmentation is not None for each in objects):
        single = [Crops.of(_mask(each, picture.size)[None]) for each in objects]
        masks = Crops.joined(single, [(0, 0)] * len(single), picture.size[::-1])
    image = reverse_channels(read(picture.file))
    return Detections(boxes, np.ones(len(objects)), labels, masks, tuple(classes), image)


def _mask(each: Object, size: tuple[int, int]) -> np.ndarray:  # [H, W], bool
    (width, height), mask = size, each.mask
    if isinstance(mask, dict):
        return coco_mask.decode(checked_rle(mask, height, width)).astype(bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(mask, height, width))).astype(bool)
