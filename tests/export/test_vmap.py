"""Rules of ``torch.vmap`` with a symbolic number of images, compared with a loop over the images."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from dcnzoo.export import vmap
from dcnzoo.export.fixed_size import keep_boxes, roi_align_pyramid
from dcnzoo.export.vmap import symbolic_batches
from dcnzoo.openmmlab.export.symbolic_sizes import SymbolicSizes, level_sizes
from tests.helpers.modules import module_of, record_calls


def convolve(*args, **options):
    with SymbolicSizes():
        return F.conv2d(*args, **options)


WEIGHT = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
FUNCTIONS = {  # of one image [2, 8, 12]
    "convolution": lambda x: F.conv2d(x[None], WEIGHT, padding=1),
    "transposed convolution": lambda x: F.conv_transpose2d(x[None], WEIGHT[:2]),
    "computed weights": lambda x: convolve(
        x.view(1, 4, 4, 12), x[:, :4, 0].reshape(4, 2, 1, 1), x[0, 0, :4], groups=2
    ),
    "bilinear": lambda x: F.interpolate(x[None], scale_factor=2, mode="bilinear"),
    "aligned corners": lambda x: F.interpolate(x[None], (5, 7), mode="bilinear", align_corners=True),
    "nearest": lambda x: F.interpolate(x[None], (5, 7)),
    "points": lambda x: F.grid_sample(x[None], x[None, :, :, :2].tanh(), align_corners=False),
    "max pooling": lambda x: F.max_pool2d(x[None], 3, 1, 1),
    "average pooling": lambda x: F.avg_pool2d(x[None], 2),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x[None], 4),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.view(1, 8, 2, 12), 2),
    "padding": lambda x: F.pad(x[None], (0, 1, 0, 1), mode="replicate"),
    "batch norm": lambda x: F.batch_norm(x[None], torch.ones(2), torch.full((2,), 3.0)),
    "group norm": lambda x: F.group_norm(x.view(2, 4, 2, 12), 2),
    "layer norm": lambda x: F.layer_norm(x, (12,)),
    "cat": lambda x: torch.cat([x, torch.ones(2, 8, 3)], -1),
    "gather": lambda x: x.gather(2, (x[..., :5] > 0).long()),
    "scatter": lambda x: x.scatter(1, (x[:, :3] > 0).long(), 5.0),
    "scatter of values": lambda x: x.scatter(1, x[:, :3].argsort(1), x[:, 3:6]),
    "nms": lambda x: keep_boxes(boxes_of(x), x[:, 0].sigmoid(), x[:, 1].gt(0).long(), 0.3, 9),
    "pooling of regions": lambda x: roi_align_pyramid(
        [x[None], x[None, :, ::2, ::2]],
        torch.cat([torch.zeros(8, 1), boxes_of(x)[0, :8]], 1),
        [1.0, 0.5], [2, 3], 4.0, 2, "avg", True,
    ),
}  # fmt: skip


def boxes_of(x):  # [2, 12, 4]
    corner = x[:, 2:4].transpose(1, 2).abs() * 3
    return torch.cat([corner, corner + 1 + x[:, 4:6].transpose(1, 2).abs() * 4], -1)


def test_rules(monkeypatch):
    called = record_calls(monkeypatch, vmap.BATCHING)
    model = module_of(lambda x: {name: torch.vmap(function)(x) for name, function in FUNCTIONS.items()})
    example, images = torch.randn(2, 2, 8, 12), torch.randn(5, 2, 8, 12)
    with torch.no_grad(), symbolic_batches():
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)
        found = program.run_decompositions().module()(images)
    assert called == {*vmap.BATCHING}, "each row has a case"
    for name, function in FUNCTIONS.items():
        for n, image in enumerate(images):
            actual = tree_map(lambda values, n=n: values[n], found[name])
            torch.testing.assert_close(actual, function(image), msg=lambda text, name=name: f"{name}: {text}")
    # torch's own rules are in use again
    torch.testing.assert_close(torch.vmap(FUNCTIONS["cat"])(images), found["cat"])


def test_weights_of_each_image_are_refused():
    """The rule folds the first argument only."""
    weights = torch.randn(3, 6, 2, 3, 3)
    with symbolic_batches(), pytest.raises(NotImplementedError, match=r"convolution.* first 1 arguments"):
        torch.vmap(lambda x, weight: F.conv2d(x[None], weight))(torch.randn(3, 2, 8, 8), weights)


def test_a_loop_over_the_sizes_of_levels_yields_numbers():
    sizes = [(2, 3), (4, 5)]
    with SymbolicSizes():
        levels = level_sizes(sizes)
        assert [*levels] == sizes and levels.tolist() == [[2, 3], [4, 5]]
