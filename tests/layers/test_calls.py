"""Offsets of layers of other packages: statistics and limit."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from dcnzoo import layers, ops

FAR = 100.0


class Foreign(nn.Module):
    """A layer as in BasicSR, on dcnzoo's function."""

    def __init__(self, groups=1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 2))
        self.kernel_size, self.deformable_groups = (3, 2), groups
        self.conv_offset = nn.Conv2d(4, 3 * 6 * groups, (3, 2), padding=1)

    def forward(self, x):
        first, second, mask = torch.chunk(self.conv_offset(x), 3, dim=1)
        offset = torch.cat([first, second], dim=1)
        return ops.deform_conv2d(x, self.weight, offset, mask.sigmoid(), padding=1)


class Mmcv(Foreign):
    """The same on mmcv's function, whose derivative is an autograd.Function."""

    def forward(self, x):
        from mmcv.ops import modulated_deform_conv2d

        first, second, mask = torch.chunk(self.conv_offset(x), 3, dim=1)
        offset = torch.cat([first, second], dim=1)
        options = (None, 1, 1, 1, 1, self.deformable_groups)
        return modulated_deform_conv2d(x, offset, mask.sigmoid(), self.weight, *options)


@pytest.fixture(params=[Foreign, Mmcv])
def layer(request):
    if request.param is Mmcv:
        pytest.importorskip("mmcv")
        import dcnzoo.models  # noqa: F401
    return request.param


def test_each_layer_is_measured(layer):
    x = torch.randn(2, 4, 7, 9)
    model = nn.Sequential(layer(), nn.Sequential(layer(2)), nn.Conv2d(4, 4, 1))
    for part, value in ((model[0], 0.5), (model[1][0], -FAR)):
        nn.init.zeros_(part.conv_offset.weight)
        nn.init.constant_(part.conv_offset.bias, value)
    expected = model(x)
    with layers.measure_offsets(model) as statistics:
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        model(x).sum().backward()
    assert set(statistics) == {"0", "1.0"}
    assert (
        statistics["0"] == pytest.approx((0.5, 0.5, statistics["0"].outside))
        and statistics["0"].outside < 0.2
    )
    assert statistics["1.0"][:2] == pytest.approx((FAR, FAR)) and statistics["1.0"].outside > 0.5
    before = dict(statistics)
    model(x)
    assert dict(statistics) == before, "nothing is measured after the block"


def test_a_layer_that_runs_several_times():
    layer = Foreign()
    nn.init.zeros_(layer.conv_offset.weight)
    with layers.measure_offsets(layer) as statistics:
        for value in (1.0, 3.0):
            nn.init.constant_(layer.conv_offset.bias, value)
            layer(torch.randn(1, 4, 6, 6))
    assert set(statistics) == {""} and statistics[""][:2] == pytest.approx((2, 3))


def test_dcnzoos_own_layer_gives_its_own_statistics():
    pack = layers.PackedDeformConv2d(4, 4, 3, padding=1)
    nn.init.normal_(pack.conv_offset.weight)
    layers.track_offsets(pack)
    with layers.measure_offsets(pack) as statistics:
        pack(torch.randn(1, 4, 9, 9))
    assert statistics[""] == pytest.approx(layers.offset_statistics(pack)[""])


def test_an_error_inside_leaves_nothing_behind():
    model = nn.Sequential(Foreign())
    with pytest.raises((ValueError, RuntimeError)), layers.measure_offsets(model):
        model(torch.randn(1, 5, 6, 6))
    assert not model[0]._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("groups", [1, 2])
def test_limit(layer, groups):
    """Offsets are bounded, masks are not, and gradients are those of the bounded function."""
    x, part = torch.randn(1, 4, 6, 7, dtype=torch.float64), layer(groups).double()
    nn.init.normal_(part.conv_offset.weight, std=2.0)
    raw = part.conv_offset(x)
    channels = 12 * groups
    expected = torch.cat([3 * torch.tanh(raw[:, :channels] / 3), raw[:, channels:]], dim=1)
    (handle,) = layers.limit_offsets(nn.Sequential(part), 3)
    torch.testing.assert_close(part.conv_offset(x), expected)
    with layers.measure_offsets(part) as statistics:
        part(x)
    assert 0 < statistics[""].max <= 3
    gradient = torch.autograd.grad(part(x).square().sum(), part.conv_offset.bias)[0]
    for index in range(0, len(gradient), 5):
        sides = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                part.conv_offset.bias[index] += step
                sides.append(part(x).square().sum())
                part.conv_offset.bias[index] -= step
        assert gradient[index].item() == pytest.approx(float(sides[0] - sides[1]) / 2e-6, rel=1e-4, abs=1e-5)
    handle.remove()
    torch.testing.assert_close(part.conv_offset(x), raw)


@pytest.mark.parametrize(
    ("model", "limit"), [(nn.Conv2d(1, 1, 1), 3), (Foreign(), 0), (Foreign(), float("inf"))]
)
def test_wrong_limits(model, limit):
    with pytest.raises(ValueError, match="limit_offsets: "):
        layers.limit_offsets(model, limit)


def test_a_limit_of_unknown_groups():
    class Grouped(Foreign):
        def forward(self, x):
            return self.conv_offset(x)

    layer = Grouped(groups=4)
    layer.deformable_groups = 1
    layers.limit_offsets(layer, 3)
    with pytest.raises(RuntimeError, match="Grouped: expected 12 offsets, and perhaps 6 masks, got 72"):
        layer(torch.randn(1, 4, 6, 7))


def test_a_transposed_layer_is_measured():
    """In its output of 8×8 pixels, as by track_offsets."""
    pack = layers.PackedDeformConvTranspose2d(1, 1, 2, stride=2)
    pack.conv_offset.bias.data[0] = 2.0
    with layers.measure_offsets(pack) as statistics:
        pack(torch.randn(1, 1, 4, 4))
    layers.track_offsets(pack)
    pack(torch.randn(1, 1, 4, 4))
    assert statistics == layers.offset_statistics(pack) and statistics[""].outside == 1 / 16


def test_other_threads_change_no_name():
    """A thread enters ``0`` while this one is in ``1``."""
    model, x = nn.Sequential(Foreign(), Foreign()), torch.randn(1, 4, 7, 9)
    entered, leave = threading.Event(), threading.Event()
    model[0].register_forward_hook(lambda *_: entered.set() or (leave.wait(10) and None))
    with layers.measure_offsets(model) as statistics, ThreadPoolExecutor(1) as pool:
        model[1].register_forward_pre_hook(lambda *_: pool.submit(model[0], x) and entered.wait(10) and None)
        model[1](x)
        leave.set()
    assert set(statistics) == {"1"}


def test_a_hook_that_raises_changes_no_name():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good = Foreign(), Foreign()
            self.bad.register_forward_pre_hook(lambda *_: 1 / 0)

        def forward(self, x):
            for _ in range(2):
                with contextlib.suppress(ZeroDivisionError):
                    self.bad(x)
            return self.good(x)

    model = nn.Sequential(Tries())
    with layers.measure_offsets(model) as statistics:
        model(torch.randn(1, 4, 7, 9))
    assert set(statistics) == {"0.good"}
