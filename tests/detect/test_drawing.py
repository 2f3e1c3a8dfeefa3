"""Drawn pictures, compared with Pillow's own filters on whole masks."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dcnzoo.detect import drawing
from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections

SIZES = [(1, 1), (40, 31), (700, 1000)]


def ellipses(size, number=4):
    """Masks that reach the picture's borders, and one without pixels."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[: size[0], : size[1]]
    masks = np.zeros((number + 1, *size), bool)
    for mask in masks[:number]:
        centre, radius = rng.random(2) * size, 1 + rng.random(2) * size / 2
        mask[:] = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
    return masks


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_drawn_as_whole_masks_are(size, monkeypatch):
    """A tint of 36 / 255, and an outline: what a minimum filter of 2 · line - 1 pixels removes."""
    masks, image = ellipses(size), np.full((*size, 3), 100, np.uint8)
    crops = Crops.of(masks)
    monkeypatch.setattr(Crops, "__getitem__", None)  # no mask of the picture's size
    monkeypatch.setattr(Crops, "whole", None)
    count = len(masks)
    boxes = np.zeros((count, 4), np.float32)
    objects = Detections(boxes, np.ones(count), np.arange(count), crops, ("",) * count)
    drawn = drawing.draw(image, objects, with_scores=False)
    expected = Image.fromarray(image).resize(drawn.size)
    line = max(2, round((drawn.width * drawn.height) ** 0.5 / 300))
    for label in reversed(range(count)):
        mask = Image.fromarray(255 * masks[label].astype(np.uint8)).resize(
            drawn.size, Image.Resampling.NEAREST
        )
        grown = Image.new("L", (drawn.width + 4 * line, drawn.height + 4 * line))
        grown.paste(mask, (2 * line, 2 * line))
        inner = grown.filter(ImageFilter.MinFilter(2 * line - 1))
        whole, inside = (np.asarray(each) > 0 for each in (grown, inner))
        opacity = np.where(whole & ~inside, 255, 36 * whole).astype(np.uint8)
        opacity = opacity[2 * line : -2 * line, 2 * line : -2 * line]
        colour = drawing.colorsys.hsv_to_rgb(label * 0.618 % 1, 0.9, 0.75)
        expected.paste(tuple(round(255 * part) for part in colour), None, Image.fromarray(opacity))
    edge = 4 + 2 * line  # boxes and texts are in a corner
    left, right = (np.asarray(each)[20 + edge :, 20 + edge :] for each in (drawn, expected))
    assert np.array_equal(left, right)


def test_of_two_labels_on_one_object_the_better_one_is_drawn():
    """The result has both. Other boxes with an IoU below .8, and a second object of the class, are drawn."""
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 7], [1, 0, 10, 10], [0, 0, 9, 9]])
    labels, scores = np.array([0, 1, 1, 0, 2]), np.float32([0.9, 0.8, 0.7, 0.6, 0.5])
    image = np.zeros((60, 60, 3), np.uint8)
    result = Detections(boxes, scores, labels, None, ("a", "b", "c"), image)
    one = result.with_one_label()
    assert one.scores.tolist() == scores[[0, 2, 3]].tolist() and len(result) == len([*result]) == 5
    both = result.draw(every_label=True)
    assert result.draw().tobytes() == one.draw(every_label=True).tobytes() != both.tobytes()
    assert not len(result[:0].with_one_label())


@pytest.mark.parametrize("size", [(1000, 8000), (3072, 4096), (64, 64)])
def test_texts_follow_the_size_of_the_picture(size):
    """A text takes less than a fifth of the picture's shorter side, and at least 10 pixels."""
    image, boxes = np.zeros((*size, 3), np.uint8), np.float32([[0, 0, 1, 1]])
    result = Detections(boxes, np.float32([0.5]), np.array([0]), None, ("a",), image)
    drawn = np.asarray(result.draw()).any(-1)
    rows, columns = drawn.any(1).sum(), drawn.any(0).sum()
    assert 10 <= rows < min(drawn.shape) / 5 and columns < min(drawn.shape)


def test_a_name_without_a_font_is_the_number_of_its_class(monkeypatch, capsys):
    font = drawing._font
    monkeypatch.setattr(drawing, "_font", lambda text, size: None if "果" in text else font(text, size))
    drawing._report_letters.cache_clear()
    image, boxes = np.zeros((60, 60, 3), np.uint8), np.float32([[10, 10, 50, 50]] * 2)
    names = ("果", "仁果", "a")
    labels = np.array([1, 2])
    result = Detections(boxes, np.float32([0.9, 0.8]), labels, None, names, image)
    numbers = Detections(boxes, np.float32([0.9, 0.8]), labels, None, ("", "1", "a"), image)
    assert result.draw().tobytes() == numbers.draw().tobytes() == result.draw().tobytes()
    assert capsys.readouterr().err.count("\n") == 1, "once"


def test_the_best_object_is_on_top():
    """Where the borders of two boxes cross, and as the first text."""
    boxes, image = np.float32([[30, 60, 90, 110], [60, 30, 110, 90]]), np.zeros((600, 600, 3), np.uint8)
    both = Detections(5 * boxes, np.float32([0.9, 0.8]), np.array([0, 1]), None, ("a", "b"), image)
    drawn, best = (np.asarray(each.draw(with_scores=False)) for each in (both, both[0]))
    assert np.array_equal(drawn[300, 320:440], best[300, 320:440]) and drawn[400, 300].any()
    assert not np.array_equal(drawn, best)
