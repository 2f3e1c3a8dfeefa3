"""nms: decisions compared with a loop over pairs, and edge cases."""

import pytest
import torch

from dcnzoo.ops import nms, plain, reference_boxes
from tests.helpers.operators import random_boxes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130])
def test_matches_loop(count, offset, dtype):
    for seed, threshold in enumerate((0.0, 0.3, 0.5, 0.7, 1.0)):
        boxes, scores = random_boxes(count, seed=seed, dtype=dtype)
        kept = nms(boxes, scores, threshold, offset)
        assert kept.dtype == torch.int64
        assert kept.tolist() == reference_boxes.nms(boxes, scores, threshold, offset).tolist()
        assert kept.tolist() == plain.nms(boxes, scores, threshold, offset).tolist()


def test_whole_pixels_meet_the_threshold_exactly():
    """Overlaps equal to a threshold of a third or a half are kept, although rounding could decide."""
    boxes = torch.tensor([[0, 0, 10, 10], [0, 5, 10, 15], [20, 0, 30, 10], [20, 0, 30, 5]]).float()
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    third = torch.tensor(1.0) / 3  # in float32
    assert nms(boxes, scores, third.item()).tolist() == [0, 1, 2]
    assert nms(boxes, scores, 0.5).tolist() == [0, 1, 2, 3]
    assert nms(boxes, scores, 0.49).tolist() == [0, 1, 2]
    assert nms(boxes, scores, 0.33).tolist() == [0, 2]
    for seed in range(20):
        boxes, scores = random_boxes(60, 20, 12, seed)
        boxes = boxes.round()
        assert nms(boxes, scores, 0.5).tolist() == reference_boxes.nms(boxes, scores, 0.5).tolist()


def test_offset_counts_the_last_pixel():
    boxes = torch.tensor([[0, 0, 9, 9], [0, 5, 9, 14.0]])  # with offset: 50 of 150 pixels, else 36 of 126
    scores = torch.tensor([2.0, 1.0])
    assert nms(boxes, scores, 0.3, offset=0).tolist() == [0, 1]
    assert nms(boxes, scores, 0.3, offset=1).tolist() == [0]


def test_order_is_by_score_and_stable():
    boxes = torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5], [6, 6, 7, 7]]).float()
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.5, 0.9]), 0.5).tolist() == [1, 3, 0, 2]
    many = torch.arange(200).float()[:, None] * 3 + torch.tensor([0.0, 0, 1, 1])
    assert nms(many, torch.ones(200), 0.5).tolist() == list(range(200))
    empty = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert empty.shape == (0,) and empty.dtype == torch.int64


def test_degenerate_boxes_are_kept():
    inf, nan = float("inf"), float("nan")
    boxes = torch.tensor(
        [[0, 0, 4, 4], [3, 3, 3, 3], [3, 3, 3, 3], [4, 4, 0, 0], [nan, 0, 4, 4], [-inf, 0, inf, 4]]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, nan, 0.5])
    assert nms(boxes, scores, 0.5).tolist()[0] == 4  # NaN has the highest rank
    assert set(nms(boxes, scores, 0.5).tolist()) >= {0, 1, 2, 4}
    assert nms(boxes, scores, 0.5).tolist() == plain.nms(boxes, scores, 0.5).tolist()


def test_opcheck_and_compile():
    boxes, scores = random_boxes(20)
    torch.library.opcheck(torch.ops.dcnzoo.nms.default, (boxes, scores, 0.5, 0))
    compiled = torch.compile(lambda b, s: b[nms(b, s, 0.5)] * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(boxes, scores), boxes[nms(boxes, scores, 0.5)] * 2)
