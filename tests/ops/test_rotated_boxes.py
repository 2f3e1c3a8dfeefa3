"""box_iou_rotated and nms_rotated against shapely and areas by hand, and edge cases. See test_fuzz.py."""

import math

import pytest
import torch
from shapely.geometry import Polygon

from dcnzoo.ops import box_iou_rotated, nms_rotated, reference_boxes

from ..op_cases.rotated_boxes import overlapping_boxes as random_boxes

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BOX = torch.tensor([[3.0, 4, 6, 2, 0.7]], dtype=torch.float64)


def polygon(box: list[float], clockwise: bool) -> Polygon:
    x, y, width, height, angle = box
    cos, sin = math.cos(angle), math.sin(angle) * (1 if clockwise else -1)
    corners = [(a * width / 2, b * height / 2) for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return Polygon([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in corners])


@pytest.mark.parametrize("clockwise", [True, False])
def test_overlaps_are_those_of_shapely(clockwise):
    boxes, others = random_boxes(25)[0], random_boxes(30, 1)[0]
    iou, iof = (box_iou_rotated(boxes, others, mode, clockwise=clockwise) for mode in ("iou", "iof"))
    assert iou.shape == (25, 30) and (iou > 0.05).sum() > 90
    first, second = ([polygon(b, clockwise) for b in t.tolist()] for t in (boxes, others))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            shared = a.intersection(b).area
            assert iou[i, j].item() == pytest.approx(shared / a.union(b).area, abs=1e-9)
            assert iof[i, j].item() == pytest.approx(shared / a.area, abs=1e-9)


def test_by_hand():
    """Equal, rotated, shifted, crossed, adjacent and nested boxes."""
    cos, sin = math.cos(0.7), math.sin(0.7)
    cases = [
        ([3, 4, 2, 6, 0.7 + math.pi / 2], 1.0),
        ([3, 4, 6, 2, 0.7 + 5 * math.pi], 1.0),
        ([3, 4, -6, -2, 0.7 - 100 * math.pi], 1.0),
        ([3, 4, 3, 2, 0.7], 1 / 2),
        ([3, 4, 1.5, 1, 0.7], 1 / 8),
        ([3 + 6 * cos, 4 + 6 * sin, 6, 2, 0.7], 0.0),
        ([3 + 3 * cos, 4 + 3 * sin, 6, 2, 0.7], 1 / 3),
        ([3, 4, 2, 6, 0.7], 4 / 20),  # crossed
        ([3, 4, 60, 20, 0.1], 1 / 100),
        ([3 + 9 * cos, 4 + 9 * sin, 6, 2, 0.7], 0.0),
    ]
    others = torch.tensor([box for box, _ in cases], dtype=torch.float64)
    expected = torch.tensor([[iou for _, iou in cases]], dtype=torch.float64)
    torch.testing.assert_close(box_iou_rotated(BOX, others), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(box_iou_rotated(others, BOX), expected.T, rtol=0, atol=1e-13)
    octagon = box_iou_rotated(torch.tensor([[0, 0, 2, 2, 0.0]]), torch.tensor([[0, 0, 2, 2, math.pi / 4]]))
    shared = 8 * (math.sqrt(2) - 1)
    assert octagon.item() == pytest.approx(shared / (8 - shared))


def test_touching_edges_share_nothing():
    """Neighbours on a grid, with exactly equal edges and corners."""
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    grid = torch.stack([2 * x, y, torch.full_like(x, 2), torch.ones_like(x), torch.zeros_like(x)], -1)
    assert torch.equal(box_iou_rotated(grid.view(-1, 5), grid.view(-1, 5)), torch.eye(20))


def test_thin_boxes_far_from_the_origin():
    """As accurate as near the origin, because overlaps of float32 boxes are computed in float64."""
    boxes = torch.tensor([[0.0, 0, 1000, 0.5, 0.3], [0, 0, 1000, 0.25, 0.3], [0, 0, 0.5, 1000, 0.3]])
    far = boxes + torch.tensor([2.0**20, -(2.0**21), 0, 0, 0])
    expected = torch.tensor([[1, 0.5, 1 / 3999], [0.5, 1, 0.125 / (750 - 0.125)], [0, 0, 1]])
    expected[2] = expected[:, 2]
    for moved in (boxes, far):
        torch.testing.assert_close(box_iou_rotated(moved, moved), expected, rtol=1e-6, atol=0)


def test_degenerate_boxes():
    """Boxes with zero or negative area, or with NaN, as in mmcv."""
    nan = math.nan
    odd = [[3, 4, 0, 2, 0.7], [3, 4, 6, 0, 0.7], [3, 4, -6, 2, 0.7], [3, 4, 1e-8, 1e-8, 0.7], [3, 4, 0, 0, 0]]
    odd = torch.tensor([*odd, [nan, 4, 6, 2, 0.7], [3, 4, 6, 2, nan]], dtype=torch.float64)
    assert not box_iou_rotated(BOX, odd).any() and not box_iou_rotated(odd, BOX, "iof").any()
    size = torch.tensor([[3, 4, nan, 2, 0.7]], dtype=torch.float64)
    for mode, nans in (("iou", [True, True]), ("iof", [False, True])):
        both = torch.cat([box_iou_rotated(BOX, size, mode), box_iou_rotated(size, BOX, mode)])
        assert both.isnan().flatten().tolist() == nans and not both.nan_to_num().any()
    boxes = torch.cat([BOX, odd, size, BOX])
    scores = torch.arange(len(boxes), 0, -1).double()
    assert nms_rotated(boxes, scores, 0.5).tolist() == list(range(len(boxes) - 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types_layouts_and_empty(dtype):
    """Random calls of test_fuzz.py have at most 40 boxes, less than a block of the kernels."""
    boxes, scores = random_boxes(70, dtype=dtype)
    others = random_boxes(1030, 1, dtype)[0]
    expected = reference_boxes.box_iou_rotated(boxes.double(), others.double())
    close = dict(rtol=torch.finfo(dtype).eps, atol=1e-7)
    for change in (torch.clone, lambda t: t.repeat_interleave(2, 1)[:, ::2], lambda t: t.T.contiguous().T):
        result = box_iou_rotated(change(boxes), change(others))
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, **close)
        kept = nms_rotated(change(boxes), scores, 0.3)
        assert kept.tolist() == reference_boxes.nms_rotated(boxes.double(), scores, 0.3).tolist()
    aligned = box_iou_rotated(boxes, others[:70], aligned=True)
    torch.testing.assert_close(aligned.double(), expected[:, :70].diagonal(), **close)
    none = boxes[:0]
    assert [tuple(box_iou_rotated(*pair).shape) for pair in ((none, others), (boxes, none))] == [
        (0, 1030),
        (70, 0),
    ]
    assert box_iou_rotated(none, none, aligned=True).shape == (0,)
    kept = nms_rotated(none, scores[:0], 0.5)
    assert kept.shape == (0,) and kept.dtype == torch.int64


def test_no_gradient():
    assert not box_iou_rotated(BOX.clone().requires_grad_(), BOX).requires_grad


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130, 400])
def test_nms_keeps_the_references(count):
    """Numbers of boxes around the block size of the kernel."""
    for seed, threshold in enumerate((0.01, 0.3, 0.7)):
        boxes, scores = random_boxes(count, seed)
        boxes[:, :2] *= math.sqrt(count) / 8
        kept = nms_rotated(boxes, scores, threshold, seed == 1)
        assert kept.tolist() == reference_boxes.nms_rotated(boxes, scores, threshold, seed == 1).tolist()


def test_nms_at_the_threshold():
    """Drop only boxes above the threshold, despite rounding. A negative threshold keeps only the best box."""
    boxes = torch.tensor([[0.0, 0, 10, 10, 0.3], [0, 0, 3, 10, 0.3], [99, 0, 10, 10, 0], [0, 0, 10, 10, 0.3]])
    scores = torch.tensor([4.0, 3, 2, 1])
    assert nms_rotated(boxes, scores, 0.3).tolist() == [0, 1, 2]
    assert nms_rotated(boxes, scores, 0.2999).tolist() == [0, 2]
    assert nms_rotated(boxes, scores, 1.0).tolist() == [0, 1, 2, 3]
    assert nms_rotated(boxes, scores, -1e-30).tolist() == [0]
    assert nms_rotated(boxes[:2].double(), scores[:2], 0.2999999).tolist() == [0]


def test_nms_order_is_by_score_and_stable():
    boxes = torch.cat([torch.arange(200.0)[:, None] * 3, torch.ones(200, 4)], 1)
    assert nms_rotated(boxes, torch.ones(200), 0.5).tolist() == list(range(200))
    assert nms_rotated(boxes[:4], torch.tensor([0.5, math.nan, 0.5, 0.9]), 0.5).tolist() == [1, 3, 0, 2]


def test_any_number_of_threads(set_threads):
    """Enough boxes for a parallel suppression."""
    boxes, scores = random_boxes(4000)
    boxes[:, :2] *= 8
    results = []
    for threads in (1, 2, 3, 7):
        set_threads(threads)
        results.append((box_iou_rotated(boxes, boxes[:511]), nms_rotated(boxes, scores, 0.1)))
    for overlaps, kept in results[1:]:
        assert torch.equal(overlaps, results[0][0]) and torch.equal(kept, results[0][1])
    assert 1000 < len(results[0][1]) < 3800


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (
            r"box_iou_rotated: boxes1: .*got \(5, 4\)",
            lambda: box_iou_rotated(torch.ones(5, 4), torch.ones(3, 5)),
        ),
        (r"box_iou_rotated: boxes2: .*got \(5,\)", lambda: box_iou_rotated(torch.ones(3, 5), torch.ones(5))),
        ("box_iou_rotated: boxes2: expected float32.*got float64", lambda: box_iou_rotated(BOX.float(), BOX)),
        ("box_iou_rotated: boxes1: .*got Long", lambda: box_iou_rotated(BOX.long(), BOX.long())),
        (
            r"box_iou_rotated: boxes2: expected shape \(1, 5\), got \(0, 5\)",
            lambda: box_iou_rotated(BOX, BOX[:0], aligned=True),
        ),
        ("box_iou_rotated: mode: expected .*got 'giou'", lambda: box_iou_rotated(BOX, BOX, "giou")),
        (r"nms_rotated: boxes: .*got \(5, 6\)", lambda: nms_rotated(torch.ones(5, 6), torch.ones(5), 0.5)),
        (r"nms_rotated: scores: .*got \(4,\)", lambda: nms_rotated(torch.ones(5, 5), torch.ones(4), 0.5)),
        ("nms_rotated: scores: .*got Long", lambda: nms_rotated(BOX, torch.ones(1).long(), 0.5)),
    ],
)
def test_invalid_input_says_what_is_wrong(message, call):
    with pytest.raises(RuntimeError, match=f"^{message}"):
        call()


def test_opcheck_compile_and_script():
    boxes, scores = random_boxes(20)
    torch.library.opcheck(torch.ops.dcnzoo.nms_rotated.default, (boxes, scores, 0.5))
    for aligned in (False, True):
        torch.library.opcheck(torch.ops.dcnzoo.box_iou_rotated.default, (boxes, boxes, True, aligned))

    def function(boxes, scores):
        kept = boxes[nms_rotated(boxes, scores, 0.5)]
        return box_iou_rotated(kept, boxes, "iof")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(boxes, scores), function(boxes, scores))
    scripted = torch.jit.script(box_iou_rotated)
    assert torch.equal(scripted(boxes, boxes, "iof"), box_iou_rotated(boxes, boxes, "iof"))
