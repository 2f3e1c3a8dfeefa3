"""Which detections of a file and of PyTorch agree: cases just inside and just outside each tolerance."""

import numpy as np
import pytest

from dcnzoo.detect.detections import Detections
from dcnzoo.export.result import Agreement
from dcnzoo.openmmlab.export.verify import compare

BOXES = ((10.0, 20, 200, 100), (0.2, 0.4, 0.5, 0.8))  # tolerances of 1e-3 of 200, and of 1e-3 pixels


def detections(boxes=BOXES, scores=(0.5, 0.4), labels=(1, 2), masks=None):
    return Detections(np.array(boxes), np.array(scores), np.array(labels), masks)


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("row", "inside", "outside"), [(0, 0.199, 0.201), (1, 0.00099, 0.00101)])
def test_boxes(row, inside, outside, side, sign):
    for distance, matched in ((inside, 2), (outside, 1)):
        boxes = np.array(BOXES)
        boxes[row, side] += sign * distance
        if (row, side) == (0, 2):  # the tolerance is relative to the boxes of PyTorch
            boxes[row, side] = BOXES[0][2] + sign * distance
        assert compare(detections(boxes), detections()) == Agreement(matched, 2)


def test_scores_and_labels():
    for scores, matched in (((0.50099, 0.39901), 2), ((0.50101, 0.4), 1), ((0.5, 0.39899), 1)):
        assert compare(detections(scores=scores), detections()).matched == matched
    assert compare(detections(labels=(1, 1)), detections()).matched == 1


def test_each_detection_matches_one():
    same = detections((BOXES[0],) * 2, (0.5, 0.5), (1, 1))
    assert compare(same, same) == Agreement(2, 2)
    one = same[:1]
    assert compare(same, one) == compare(one, same) == Agreement(1, 2)
    assert compare(detections()[::-1], detections()) == Agreement(2, 2), "in any order"
    assert compare(same[:0], same[:0]) == Agreement(0, 0)


def square(rows, columns):
    mask = np.zeros((120, 120), bool)
    mask[:rows, :columns] = True
    return mask


@pytest.mark.parametrize(("side", "cut"), [(20, 1), (90, 1), (100, 1), (100, 2), (120, 1), (120, 2), (7, 0)])
def test_masks(side, cut):
    """Masks agree with an IoU of at least 0.99, whatever the length of their borders."""
    from pycocotools.mask import encode, iou

    one, other = (detections(BOXES[:1], (0.5,), (1,), square(side - n, side)[None]) for n in (cut, 0))
    codes = [encode(np.asfortranarray(each.masks[0], np.uint8)) for each in (one, other)]
    expected = float(iou(codes[:1], codes[1:], [0])[0, 0])
    for agreement in (compare(one, other), compare(other, one)):
        assert agreement.matched == (expected >= 0.99)
        assert agreement.mask_iou == pytest.approx(expected)
    without = detections(BOXES[:1], (0.5,), (1,))
    assert compare(without, one) == compare(one, without) == Agreement(0, 1)
    assert compare(without, without).mask_iou is None


def test_the_nearest_mask_is_compared():
    """Of detections with one box, those with one mask match, in any order."""
    masks = np.stack([square(100, 100), square(50, 100)])
    same = detections((BOXES[0],) * 2, (0.5, 0.5), (1, 1), masks)
    assert compare(same[::-1], same) == Agreement(2, 2) and compare(same[::-1], same).mask_iou == 1


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (dict(scores=(0.5, 0.27)), 130),
        (dict(scores=(0.48, 0.27)), 130),
        (dict(boxes=(BOXES[0], (0.2, 0.4, 0.5, 2.8))), 2000),
        (dict(labels=(1, 0)), 400),
        (dict(masks=np.stack([square(9, 9), square(6, 10)])), 40),
    ],
)
def test_the_largest_difference(changed, expected):
    """In tolerances: 0.001 of a score, 0.001 pixels or parts of a coordinate, 0.01 of an IoU."""
    masks = np.stack([square(9, 9), square(10, 10)])
    agreement = compare(detections(**{"masks": masks, **changed}), detections(masks=masks), "picture 3")
    assert agreement.largest.tolerances == pytest.approx(expected)
    assert "picture 3, box 2" in str(agreement)
    assert (agreement + Agreement(1, 1)).largest == agreement.largest


def test_detections_of_one_side_only():
    for one, other in ((detections(), detections()[:1]), (detections()[:1], detections())):
        assert compare(one, other).largest.tolerances == pytest.approx(400)
    assert compare(detections(), detections()).largest is None


def test_a_hundredth_may_differ():
    for matched, holds in ((99, True), (98, False), (0, False)):
        assert Agreement(matched, 100).holds is holds
    assert not Agreement(0, 0).holds and Agreement(1, 1).holds
    assert Agreement(1, 2) + Agreement(3, 4) == Agreement(4, 6)
