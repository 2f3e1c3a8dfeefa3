"""freeze: packed weights are kept, and no change of a weight that torch records gives an old result."""

from __future__ import annotations

import copy
import gc
import io
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from dcnzoo.layers import DeformConv2d, PackedDeformConv2d, freeze
from dcnzoo.layers.freeze import _packed
from dcnzoo.ops import _backend, deform_conv2d, has_ops, reference

CHANNELS = 40  # of input and output: one panel, and a part of one
pytestmark = pytest.mark.skipif(
    not has_ops() or _backend.backend not in ("auto", "compiled"), reason="needs the compiled CPU kernels"
)


def inputs(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (5, 7), groups: int = 1) -> tuple:
    """Input, offset and mask."""
    make = torch.Generator().manual_seed(0)
    shapes = (CHANNELS, 18 * groups, 9 * groups)
    return tuple(torch.randn(2, channels, *size, generator=make).to(dtype) for channels in shapes)


def new_layer() -> DeformConv2d:
    return DeformConv2d(CHANNELS, CHANNELS, 3, padding=1)


def assert_right(layer: DeformConv2d, given: tuple[Tensor, ...] | None = None, atol: float = 1e-4) -> Tensor:
    """Check the layer's result against the reference, and return it."""
    x, offset, mask = inputs(layer.weight.dtype) if given is None else given
    with torch.no_grad():
        got = layer(x, offset, mask)
        values = (v.double() for v in (x, layer.weight, offset, mask, layer.bias))
        expected = reference.deform_conv(*values, layer.stride, layer.padding, layer.dilation, layer.groups)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)
    return got


def frozen_layer() -> DeformConv2d:
    """A frozen layer that has run once."""
    layer = freeze(new_layer())
    assert_right(layer)
    return layer


def test_packs_once():
    """A change that torch does not record shows that the copy is used until freeze is called again."""
    layer = frozen_layer()
    before = assert_right(layer)
    layer.weight.data.zero_()
    assert torch.equal(layer(*inputs()), before)
    freeze(layer)
    assert_right(layer)


def in_place(layer):
    layer.weight.mul_(-2)


def view(layer):
    layer.weight[3, :, 1].zero_()


def detached(layer):
    layer.weight.detach().view(-1)[7] = 100


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.weight.copy_(torch.randn(layer.weight.shape))


def load_state_dict(layer):
    layer.load_state_dict(new_layer().state_dict())


def assign_state_dict(layer):
    layer.load_state_dict(new_layer().state_dict(), assign=True)


def replaced_parameter(layer):
    layer.weight = torch.nn.Parameter(torch.randn(layer.weight.shape))


def data(layer):
    layer.weight.data = torch.randn(layer.weight.shape)


def data_of_same_memory(layer):
    layer.weight.data = layer.weight.data.transpose(0, 1)


def data_of_same_address(layer):
    """Free the weight, then use a new tensor at the same address, if the allocator returns one."""
    shape = layer.weight.shape
    neighbours = [torch.randn(shape) for _ in range(50)]
    layer.weight.data = neighbours[25]
    assert_right(layer)
    place = layer.weight.data_ptr()
    layer.weight.data = torch.empty(0)
    del neighbours
    new = [torch.randn(shape) for _ in range(100)]
    layer.weight.data = next((values for values in new if values.data_ptr() == place), new[0])


def set_(layer):
    layer.weight.set_(torch.randn(layer.weight.shape))


def double(layer):
    layer.double()


@pytest.mark.parametrize("kind", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_training(kind):
    """Fused optimizers do not count as a change of the weight (`_version`)."""
    layer = frozen_layer().requires_grad_(True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, **kind)
    for _ in range(2):
        layer(*inputs()).square().mean().backward()
        optimizer.step()
        assert_right(layer)
    freeze(layer)
    assert_right(layer)
    assert_right(layer)


CHANGES = [
    in_place, view, detached, in_inference_mode, load_state_dict, assign_state_dict, replaced_parameter, data,
    data_of_same_memory, data_of_same_address, set_, double,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weight(change):
    layer = frozen_layer()
    before = assert_right(layer)
    with torch.no_grad():
        change(layer)
    after = assert_right(layer)
    assert (after - before).abs().max() > 0.01 or change is double
    assert torch.equal(assert_right(layer), after)


@pytest.mark.parametrize("change", [in_place, load_state_dict, data, double], ids=lambda c: c.__name__)
def test_changed_weight_of_compiled_layer(change):
    layer = freeze(new_layer())
    compiled = torch.compile(layer, backend="aot_eager")
    given = inputs()
    torch.testing.assert_close(compiled(*given), assert_right(layer, given))
    with torch.no_grad():
        change(layer)
    given = inputs(layer.weight.dtype)
    torch.testing.assert_close(compiled(*given), assert_right(layer, given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 4, CHANNELS])
def test_same_bits(dtype, groups):
    """The numbers of offset and mask groups change the packed layout."""
    layer = DeformConv2d(CHANNELS, CHANNELS, 3, padding=1, groups=groups).to(dtype)
    frozen = freeze(copy.deepcopy(layer))
    for offset_groups in (1, 5, 1, 2):
        given = inputs(dtype, groups=offset_groups)
        for _ in range(2):
            assert torch.equal(frozen(*given), layer(*given))


def test_large_map():
    """On a map that is copied in several passes, the blocks have fewer channels."""
    layer = DeformConv2d(CHANNELS, CHANNELS, 3, padding=1, stride=(97, 89))
    frozen = freeze(copy.deepcopy(layer))
    x = torch.randn(1, CHANNELS, 600, 600)
    offset = torch.randn(1, 18, *layer(x).shape[2:])
    for map in (x, x[..., :300], x, x):
        part = offset[..., : (map.shape[3] - 1) // 89 + 1]
        assert torch.equal(frozen(map, part), layer(map, part))


def test_copies_are_not_frozen():
    layer = frozen_layer()
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    for other in (copy.deepcopy(layer), torch.load(saved, weights_only=False)):
        assert other.weight not in _packed
        other.weight.data.zero_()
        assert_right(other)
    assert_right(layer)


def test_memory_is_freed():
    count = len(_packed)
    layers = [frozen_layer(), frozen_layer().requires_grad_(True)]
    layers[1](*inputs())
    assert [layer.weight in _packed for layer in layers] == [True, False]
    del layers
    gc.collect()
    assert len(_packed) == count


def test_inference_tensors_are_not_kept():
    """They do not count their changes."""
    with torch.inference_mode():
        layer = freeze(new_layer())
        assert_right(layer)
        layer.weight.zero_()
        assert_right(layer)


def test_autocast_vmap_and_gradients():
    layer = new_layer()
    frozen = freeze(copy.deepcopy(layer))
    x, offset, mask = inputs()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(frozen(x, offset, mask), layer(x, offset, mask))
        results = [
            torch.vmap(one, in_dims=(0, None, None))(torch.stack([x, -x]), offset, mask)
            for one in (frozen, layer)
        ]
        assert torch.equal(*results)
        of_x = x.clone().requires_grad_()
        gradients = [
            torch.autograd.grad(one(of_x, offset, mask).square().sum(), of_x) for one in (frozen, layer)
        ]
        assert torch.equal(gradients[0][0], gradients[1][0])


def test_layer_that_predicts_its_offsets():
    layer = PackedDeformConv2d(CHANNELS, 8, 3, padding=1, modulated=True).requires_grad_(False)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    frozen = freeze(copy.deepcopy(layer))
    for _ in range(2):
        assert torch.equal(frozen(inputs()[0]), layer(inputs()[0]))


def test_threads():
    layer, results = freeze(new_layer()), []
    barrier = threading.Barrier(8)

    def call():
        barrier.wait()
        results.extend(layer(*inputs()) for _ in range(20))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = assert_right(layer)
    assert len(results) == 160
    assert all(torch.equal(result, expected) for result in results)


def test_errors_stay():
    layer = frozen_layer()
    x, offset, mask = inputs()
    for given in ((x, offset[:, :17], mask), (x.double(), offset, mask)):
        messages = []
        for weight in (layer.weight, layer.weight.clone()):
            with pytest.raises(RuntimeError) as caught:
                deform_conv2d(given[0], weight, *given[1:], padding=1)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


FORK = """
import os, sys, torch
from tests.test_freeze import assert_right, frozen_layer
layer = frozen_layer()
child = os.fork()
with torch.no_grad():
    layer.weight.mul_(3 if child else -2)
assert_right(layer)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""


def test_fork():
    """Parent and child change their own weights after a fork."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the threads of OpenMP do not survive a fork
    subprocess.run([sys.executable, "-c", FORK], env=environment, check=True, timeout=120)
