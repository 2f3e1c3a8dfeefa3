"""RoI pooling: results by hand and edge cases. More cases in tests/op_cases."""

from dataclasses import replace

import pytest
import torch

from dcnzoo.ops import deform_roi_pool, reference, roi_align
from tests.op_cases import Sample, results
from tests.op_cases import roi_align as cases
from tests.op_cases.deform_roi_pool import make

INF, NAN = float("inf"), float("nan")
FORMATS = [torch.contiguous_format, torch.channels_last]


def outputs_and_gradients(function, maps, rois, offset, *arguments):
    sample = Sample("", (maps, rois, offset), constant=(1,))
    return results(lambda sample: function(*sample.tensors, *arguments), sample)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 2), RuntimeError, "rois: expected the boxes of each image, got an empty list"),
        ((torch.zeros(1, 5), (7.0, 7.0)), TypeError, r"output_size: .*, got \[7.0, 7.0\]"),
        ((torch.zeros(1, 5), (7, 7, 7)), RuntimeError, "output_size: expected 2 values, got 3"),
        ((torch.zeros(1, 5), 7, 1.0, 2.0), TypeError, "sampling_ratio: expected an integer, got 2.0"),
    ],
)
def test_arguments_of_another_type(arguments, error, message):
    maps, (rois, *others) = torch.zeros(1, 2, 5, 5), arguments
    with pytest.raises(error, match=f"^roi_align: {message}$"):
        roi_align(maps, rois, *others)
    with pytest.raises(error, match=f"^deform_roi_pool: {message}$"):
        deform_roi_pool(maps, rois, torch.zeros(1, 2, 7, 7), *others)


@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_without_offset_is_roi_align(ratio):
    maps, rois, offset = make("example").tensors
    expected = roi_align(maps, rois, (3, 2), 0.5, ratio)
    arguments = ((3, 2), 0.5, ratio)
    assert torch.equal(deform_roi_pool(maps, rois, None, *arguments), expected)
    torch.testing.assert_close(deform_roi_pool(maps, rois, torch.zeros_like(offset), *arguments), expected)
    torch.testing.assert_close(reference.deform_roi_pool(maps, rois, None, *arguments), expected)
    torch.testing.assert_close(deform_roi_pool(maps, rois, offset, *arguments, gamma=0.0), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64])
def test_boxes_of_each_image_and_integers(dtype):
    """torchvision takes a list of the boxes of each image; integers have the values of floats."""
    maps, _, offset = make("example").tensors
    boxes = [torch.tensor(rows).reshape(-1, 4) for rows in ([[1, 2, 9, 8], [0, 0, 5, 7]], [], [[3, 1, 8, 9]])]
    numbers = torch.tensor([[0], [0], [2]])
    maps, offset = torch.cat([maps, maps])[:3], offset[:3]
    rows = torch.cat([numbers, *boxes[:1], *boxes[2:]][1:]).double()
    rows = torch.cat([numbers.double(), rows], 1)
    for given in ([each.to(dtype) for each in boxes], rows.to(dtype)):
        for function in (roi_align, torch.jit.script(roi_align)):
            assert torch.equal(function(maps, given, (3, 2), 0.5), roi_align(maps, rows, (3, 2), 0.5))
        got = deform_roi_pool(maps, given, offset, (3, 2), 0.5)
        assert torch.equal(got, deform_roi_pool(maps, rows, offset, (3, 2), 0.5))


def test_roi_align_by_hand():
    """On the map x, a bin pools to its centre. Pixel i has its centre at i + 0.5."""
    maps = torch.arange(8.0).expand(1, 1, 6, 8)
    roi = torch.tensor([[0, 2.0, 1.0, 6.0, 5.0]])
    for settings, row in (({}, [2.5, 4.5]), ({"aligned": False}, [3.0, 5.0])):
        assert roi_align(maps, roi, 2, **settings)[0, 0].tolist() == [row, row]


def test_deform_roi_pool_by_hand():
    """On the maps x and 10 y, the value changes by the shift of the bin: gamma · size · offset."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    maps = torch.stack([x, 10 * y])[None]
    roi = torch.tensor(
        [[0, 6.0, 4.0, 14.0, 10.0]]
    )  # 8 wide, 6 high: bins of 4 × 3, centred at 8, 12 and 5.5, 8.5
    offset = torch.zeros(1, 2, 2, 2)
    offset[0, 0, 0, 1] = 2.0  # x of the upper right bin: 0.1 · 8 · 2 = 1.6
    offset[0, 1, 1, 0] = -1.0  # y of the lower left bin: -0.1 · 6 = -0.6
    pooled = deform_roi_pool(maps, roi, offset, 2)
    across = torch.tensor([[7.5, 11.5 + 1.6], [7.5, 11.5]])
    down = torch.tensor([[5.0, 5.0], [8.0 - 0.6, 8.0]]) * 10
    torch.testing.assert_close(pooled, torch.stack([across, down])[None])
    # an offset of 1 is gamma times the size of the RoI on the map
    halved = deform_roi_pool(maps, 2 * roi, offset, 2, spatial_scale=0.5, gamma=0.2)
    torch.testing.assert_close(halved[0, 0, 0, 1], torch.tensor(11.5 + 3.2))


def test_border():
    """Up to one pixel outside the map, the border pixel is read; further out, samples are 0."""
    row = torch.tensor([3.0, 5.0, 4.0, 8.0]).view(1, 1, 1, 4)
    pixel = torch.tensor([[0, 0.0, 0.5, 1.0, 0.5]])  # one wide, one sample at x = 0, y = 0
    places = torch.tensor([-1.25, -1.0, -0.5, 0.0, 0.25, 2.5, 3.0, 3.5, 4.0, 4.25])
    offset = torch.zeros(len(places), 2, 1, 1)
    offset[:, 0, 0, 0] = places
    offset.requires_grad_()
    pooled = deform_roi_pool(row, pixel.repeat(len(places), 1), offset, 1, 1.0, 1, gamma=1.0)
    assert pooled.flatten().tolist() == [0, 3, 3, 3, 3.5, 6, 8, 8, 8, 0]
    (gradient,) = torch.autograd.grad(pooled.sum(), offset)
    # at a pixel centre, the gradient is the slope on the right; at the ends of the range, it is 0
    assert gradient[:, 0].flatten().tolist() == [0, 0, 0, 2, 2, 4, 0, 0, 0, 0]
    assert not gradient[:, 1].any()


NOTHING = [[0, NAN, 0, 3, 3], [0, 0, 0, INF, 3], [0, -INF, 0, INF, 3], [0, 40, 40, 50, 50]]
OF_NO_SIZE = [[0, 4, 4, 1, 1], [0, 2, 2, 2, 2]]


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("ratio", [0, 2])
def test_rois_without_anything_to_sample(ratio, format):
    rois = torch.tensor([*NOTHING, *([] if ratio else OF_NO_SIZE)])
    maps = torch.full((1, 40, 5, 6), 3.0).contiguous(memory_format=format)
    offset = torch.full((len(rois), 2, 3, 3), 0.1)
    for function in (deform_roi_pool, reference.deform_roi_pool):
        for result in outputs_and_gradients(function, maps, rois, offset, (3, 3), 1.0, ratio):
            assert (result == 0).all()
    maps.requires_grad_()
    assert roi_align(maps, torch.zeros(0, 5), 3).shape == (0, 40, 3, 3)
    output = roi_align(maps, rois, 3, 1.0, ratio)
    assert not output.any() and not torch.autograd.grad(output.sum(), maps)[0].any()


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_rois_of_absurd_size(format):
    """Only samples on the map cost time. A RoI with too many samples to count pools to 0."""
    maps = torch.full((2, 40, 5, 6), 3.0).contiguous(memory_format=format)
    rois = torch.tensor([[0, -1e6, -1e6, 1e6, 1e6], [1, -1e30, -1e30, 1e30, 1e30]])
    expected = torch.tensor([3 * 7 * 8 / 4e12, 0]).expand(40, 2).T[..., None, None]
    torch.testing.assert_close(deform_roi_pool(maps, rois, torch.zeros(2, 2, 1, 1), 1), expected)
    torch.testing.assert_close(roi_align(maps, rois, 1), expected)


@pytest.mark.parametrize("function", [deform_roi_pool, reference.deform_roi_pool])
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("axis", [0, 1])
def test_bins_that_are_nowhere_contribute_nothing(function, value, axis):
    maps, rois, offset = (t.float() for t in make("example").tensors)
    maps[:, :, 0, 0] = INF
    rois = rois[:1] * 0 + torch.tensor([[1, 4.0, 4.0, 20.0, 14.0]])
    offset = torch.zeros_like(offset[:1])
    offset[0, axis, 1, 1] = value
    output, grad_maps, grad_offset = outputs_and_gradients(function, maps, rois, offset, (3, 2), 0.5)
    assert output.isfinite().all() and not output[0, :, 1, 1].any()
    assert output.any() and grad_maps.isfinite().all() and grad_offset.isfinite().all()
    assert not grad_offset[0, :, 1, 1].any() and grad_offset.any()


ON_MAPS = [
    [1, 2.5, 3.0, 15.5, 9.0],
    [0, 1.0, 2.0, 70.0, 11.0],
    [1, 30.2, -4.0, 40.0, 20.0],
    [0, 1.2, 1.7, 1.9, 2.2],
]


@pytest.mark.parametrize("channels", [15, 17, 83])  # around the vectors and blocks of the kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_memory_formats_of_every_type(format, dtype, channels):
    maps = torch.randn(2, channels, 12, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    maps[:, :, 0, 0] = NAN  # no RoI reads it
    sample = Sample("", (maps.contiguous(memory_format=format), torch.tensor(ON_MAPS)), constant=(1,))
    tolerance = max(2 * torch.finfo(dtype).eps, 1e-5)
    for size, ratio, aligned in (((7, 7), 0, True), ((3, 30), 2, False), ((20, 2), 1, True)):
        sample = replace(
            sample, kwargs=dict(output_size=size, spatial_scale=0.9, sampling_ratio=ratio, aligned=aligned)
        )
        mine = results(cases.call, sample)
        assert mine[0].is_contiguous()
        for got, want in zip(mine, results(cases.reference, sample.to(torch.float64)), strict=True):
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_many_rois_give_the_same_bits_for_every_number_of_threads(format, set_threads):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 83, 12, 70, generator=generator).contiguous(memory_format=format).requires_grad_()
    rois = torch.tensor(ON_MAPS).repeat(10, 1)
    rois[:, 1:] += torch.rand(40, 4, generator=generator) * 3
    results = []
    for threads in (1, 2, 5):
        set_threads(threads)
        output = roi_align(maps, rois, 7)
        results.append((output, *torch.autograd.grad(output.square().sum(), maps)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
