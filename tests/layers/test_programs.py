"""Every layer as a program: torch.export, torch.fx, torch.jit.script."""

import copy
import inspect
import io
import pickle
import re

import pytest
import torch
from torch import fx, nn

import dcnzoo.ops
from dcnzoo import layers
from dcnzoo.layers.statistics import tracks_offsets

from ..modules import randomise

BOXES = torch.tensor([[1, 2.0, 3.0, 15.0, 11.0], [0, 4.0, 1.0, 21.0, 17.0], [1, 0.0, 0.0, 9.0, 16.0]])
SHAPES, STARTS = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])


def maps(rank: int) -> torch.Tensor:
    return torch.randn(2, 4, *[(11,), (7, 10), (4, 6, 5)][rank - 1])


def convolution(rank: int, name: str = "PackedDeformConv", **options):
    """A layer with kernel size 3. Its 5 output channels differ from its 4 input channels."""
    layer = getattr(layers, f"{name}{rank}d")(4, 5, 3, padding=1, **options)
    return layer, (maps(rank), *(() if name.startswith("Packed") else fields(rank)))


def fields(rank):
    size, taps = maps(rank).shape[2:], 3**rank
    return torch.randn(2, taps * rank, *size), torch.rand(2, taps, *size)


def attention():
    query, value = torch.randn(2, 6, 8), torch.randn(2, 26, 8)
    layer = layers.MultiScaleDeformableAttention(8, num_heads=2, num_levels=2, num_points=3)
    return layer, (query, torch.rand(2, 6, 2, 2), value, SHAPES, STARTS)


def last(layer):
    return layer, (torch.randn(2, 7, 10, 8),)


def pool(layer, *offset):
    return layer, (maps(2), BOXES, *offset)


VERSIONS = {
    "v1": {},
    "v2": {"modulated": True},
    "softmax": {"modulated": True, "mask_activation": "softmax", "offset_limit": 2.0},
    "separable": {"modulated": True, "prediction": "separable"},
}


CASES = {
    **{
        f"PackedDeformConv{kind}{rank}d-{name}": lambda kind=kind, rank=rank, options=options: convolution(
            rank, f"PackedDeformConv{kind}", **options
        )
        for kind in ("", "Transpose")
        for rank, names in ((1, ("softmax",)), (2, ("v1", "v2", "softmax", "separable")), (3, ("v2",)))
        for name, options in VERSIONS.items()
        if name in names and (kind, name) != ("Transpose", "separable")
    },
    **{
        f"DeformConv{kind}{rank}d": lambda kind=kind, rank=rank: convolution(rank, f"DeformConv{kind}")
        for kind in ("", "Transpose")
        for rank in (1, 2, 3)
    },
    "DCNv3": lambda: last(layers.DCNv3(8, group=2)),
    "DCNv3-center": lambda: last(layers.DCNv3(8, group=2, center_feature_scale=True, stride=2)),
    "DCNv3-batch norm": lambda: last(layers.DCNv3(8, group=4, norm_layer="BN", act_layer="ReLU")),
    "DCNv4": lambda: last(layers.DCNv4(8, group=2)),
    "DCNv4-sequence": lambda: (layers.DCNv4(8, group=2), (torch.randn(2, 49, 8),)),
    "DCNv4-bare": lambda: last(layers.DCNv4(8, group=2, without_pointwise=True, remove_center=True)),
    "DCNv4-center": lambda: last(layers.DCNv4(8, group=2, center_feature_scale=True, dw_kernel_size=3)),
    "MultiScaleDeformableAttention": attention,
    "DeformRoIPool": lambda: pool(layers.DeformRoIPool((3, 2), 0.5, 2), torch.randn(3, 2, 3, 2)),
    "DeformRoIPoolPack": lambda: pool(layers.DeformRoIPoolPack((3, 2), 4, 8, 0.5, 2)),
    "ModulatedDeformRoIPoolPack": lambda: pool(layers.ModulatedDeformRoIPoolPack((3, 2), 4, 8, 0.5, 2)),
    "MaskSigmoid": lambda: (layers.MaskSigmoid(2), (torch.randn(2, 18, 4, 5),)),
    "MaskSoftmax": lambda: (layers.MaskSoftmax(9), (torch.randn(2, 18, 4, 5),)),
    "OffsetConv1d": lambda: (layers.OffsetConv1d(4, 6, 3), (maps(1),)),
    "OffsetConv2d": lambda: (layers.OffsetConv2d(4, 6, 3), (maps(2),)),
    "OffsetConv3d": lambda: (layers.OffsetConv3d(4, 6, 3), (maps(3),)),
    "OffsetLinear": lambda: (layers.OffsetLinear(4, 6), (torch.randn(2, 4),)),
}
every_layer = pytest.mark.parametrize("name", CASES)
# One layer of each class; of convolutions, those of images, whose code 1d and 3d share.
CHOSEN = {name.partition("-")[0]: name for name in CASES if not re.search("[13]d-", name)}.values()
chosen_layers_first = pytest.mark.parametrize(
    "name", [n if n in CHOSEN else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def randomised(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A layer with random offsets and masks, so that an incorrect program fails."""
    layer, given = CASES[name]()
    return randomise(layer).eval(), given


def test_every_public_layer_is_here():
    public = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))}
    assert {name for name in public if issubclass(getattr(layers, name), nn.Module)} == {
        type(make()[0]).__name__ for make in CASES.values()
    }


# torch.export


@chosen_layers_first
def test_exported_program_is_saved_loaded_and_run(name):
    layer, given = randomised(name)
    layers.track_offsets(layer)
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, given), file)
    file.seek(0)
    loaded = torch.export.load(file)
    torch.testing.assert_close(loaded.module()(*given), layer(*given))
    assert not any("set_grad" in str(node.target) for node in loaded.graph.nodes)
    tracked = any(map(tracks_offsets, layer.modules()))
    assert bool(layers.offset_statistics(layer)) == tracked


@chosen_layers_first
def test_layer_is_copied_pickled_and_compiled(name):
    layer, given = randomised(name)
    layers.track_offsets(layer)
    expected = layer(*given)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(*given), expected) and repr(other) == repr(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), expected)


# torch.fx


class Named(nn.Module):
    """A network with named arguments, as symbolic_trace requires."""

    def __init__(self, layer: nn.Module, count: int) -> None:
        super().__init__()
        self.block = nn.Sequential()
        self.block.add_module("layer", layer)
        names = ", ".join("abcdef"[:count])
        scope: dict = {}
        exec(f"def forward(self, {names}): return self.block.layer({names}).relu() * 2", scope)
        type(self).forward = scope["forward"]


@every_layer
def test_fx_traces_a_network_with_the_layer_as_a_leaf(name):
    layer, given = randomised(name)
    network = Named(layer, len(given))
    seen = []

    class Tracer(fx.Tracer):  # such as that of torchvision's feature extractor
        def call_module(self, module, *arguments):
            seen.append(module)
            return super().call_module(module, *arguments)

    traced = fx.GraphModule(network, Tracer().trace(network))
    assert layer in seen
    called = [node for node in traced.graph.nodes if node.op == "call_module"]
    if not name.startswith(("Mask", "Offset")):  # traced into their operations
        assert [node.target for node in called] == ["block.layer"]
        assert type(traced.get_submodule("block.layer")) is type(layer)
    for factor in (1, 0.75):
        changed = [t * factor if t.is_floating_point() and t is not BOXES else t for t in given]
        torch.testing.assert_close(traced(*changed), network(*changed))
    # Trace the layer by itself. As in torch, attention (torch.nn.MultiheadAttention) cannot be traced, and
    # transposed layers (torch.nn.ConvTranspose2d) need a concrete output_size.
    if not name.startswith(("MultiScale", "DCNv4-sequence")):
        concrete = {"output_size": None} if "Transpose" in name else {}
        torch.testing.assert_close(fx.symbolic_trace(layer, concrete_args=concrete)(*given), layer(*given))


# torch.jit.script


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("MultiScale")])
def test_scripted_layer_is_saved_loaded_and_run(name):
    layer, given = randomised(name)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    outputs = loaded(*given), layer(*given)
    torch.testing.assert_close(*outputs)
    if parameters := list(layer.parameters()):
        expected = torch.autograd.grad(outputs[1].square().sum(), parameters)
        got = torch.autograd.grad(outputs[0].square().sum(), list(loaded.parameters()))
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [(3, 2), 3, [2, 4]], ids=str)
def test_scripted_roi_align(size):
    arguments = maps(2), BOXES, size, 0.5, 2, "avg", False
    expected = dcnzoo.ops.roi_align(*arguments)
    torch.testing.assert_close(torch.jit.script(dcnzoo.ops.roi_align)(*arguments), expected)


@pytest.mark.parametrize(
    "name",
    sorted(set(dcnzoo.ops.__all__) - {"has_ops", "with_cuda", "problems", "cpu_capability", "explain"}),
)
def test_every_function_scripts(name):
    torch.jit.script(getattr(dcnzoo.ops, name))
