"""Every layer as a program: torch.export, torch.fx, torch.jit.script."""

from __future__ import annotations

import inspect
import io

import pytest
import torch
from torch import fx, nn

import dcnzoo.ops
from dcnzoo import layers

from .modules import randomise

BOXES = torch.tensor([[1, 2.0, 3.0, 15.0, 11.0], [0, 4.0, 1.0, 21.0, 17.0], [1, 0.0, 0.0, 9.0, 16.0]])
SHAPES, STARTS = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
SIZES = {1: (11,), 2: (7, 10), 3: (4, 6, 5)}


def maps(rank: int, channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, *SIZES[rank])


def convolution(rank: int, name: str = "PackedDeformConv", **options):
    """Of 5 channels, so that a layer after it notices; kernel 3 on each axis."""
    layer = getattr(layers, f"{name}{rank}d")(4, 5, 3, padding=1, **options)
    if name.startswith("Packed"):
        return layer, (maps(rank),)
    taps = 3**rank
    fields = torch.randn(2, taps * rank, *SIZES[rank]), torch.rand(2, taps, *SIZES[rank])
    return layer, (maps(rank), *fields)


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
}


CASES = {
    **{
        f"PackedDeformConv{kind}{rank}d-{name}": lambda kind=kind, rank=rank, options=options: convolution(
            rank, f"PackedDeformConv{kind}", **options
        )
        for kind in ("", "Transpose")
        for rank, names in ((1, ("softmax",)), (2, ("v1", "v2", "softmax")), (3, ("v2",)))
        for name, options in VERSIONS.items()
        if name in names
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


def randomised(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Offsets and masks that matter, so that a wrong program shows."""
    torch.manual_seed(0)
    layer, given = CASES[name]()
    return randomise(layer).eval(), given


def test_every_public_layer_is_here():
    public = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))}
    assert {name for name in public if issubclass(getattr(layers, name), nn.Module)} == {
        type(make()[0]).__name__ for make in CASES.values()
    }


# torch.export


@every_layer
def test_exported_program_is_saved_loaded_and_run(name):
    layer, given = randomised(name)
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, given), file)
    file.seek(0)
    loaded = torch.export.load(file)
    torch.testing.assert_close(loaded.module()(*given), layer(*given))
    assert not any("set_grad" in str(node.target) for node in loaded.graph.nodes)


def test_export_while_statistics_are_kept():
    layer, given = randomised("PackedDeformConv2d-v2")
    layers.track_offsets(layer)
    program = torch.export.export(layer, given)
    torch.testing.assert_close(program.module()(*given), layer(*given))
    assert layers.offset_statistics(layer) and layers.modulation_statistics(layer)


# torch.fx


class Named(nn.Module):
    """Of named arguments, as symbolic_trace needs them."""

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
    traced = fx.symbolic_trace(network)
    called = [node for node in traced.graph.nodes if node.op == "call_module"]
    if not name.startswith(("Mask", "Offset")):  # of which the operations are traced
        assert [node.target for node in called] == ["block.layer"]
        assert type(traced.get_submodule("block.layer")) is type(layer)
    for factor in (1, 0.75):
        changed = [t * factor if t.is_floating_point() and t is not BOXES else t for t in given]
        torch.testing.assert_close(traced(*changed), network(*changed))


# Their default arguments are those of torch.nn.ConvTranspose2d, of which the same is true; and
# like torch.nn.MultiheadAttention the attention needs values.
# Like torch.nn.MultiheadAttention the attention needs values of its arguments.
BY_THEMSELVES = [n for n in CASES if not n.startswith(("MultiScale", "DCNv4-sequence"))]


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_fx_traces_the_layer_itself(name):
    layer, given = randomised(name)
    # the default arguments are those of torch.nn.ConvTranspose2d, of which the same is true
    traced = fx.symbolic_trace(layer, concrete_args={"output_size": None} if "Transpose" in name else {})
    torch.testing.assert_close(traced(*given), layer(*given))


class FeatureExtractor(fx.Tracer):
    """As torchvision's NodePathTracer: leaves are given by type, a node has the name of its module."""

    def __init__(self, leaf_modules: tuple[type, ...] = ()) -> None:
        super().__init__()
        self.leaf_modules, self.module, self.names = leaf_modules, "", {}

    def is_leaf_module(self, module, name):
        return super().is_leaf_module(module, name) or isinstance(module, self.leaf_modules)

    def call_module(self, module, forward, args, kwargs):
        before, self.module = self.module, self.path_of_module(module)
        try:
            if not self.is_leaf_module(module, self.module):
                return forward(*args, **kwargs)
            return self.create_proxy("call_module", self.module, args, kwargs)
        finally:
            self.module = before

    def create_proxy(self, kind, target, args, kwargs, name=None, type_expr=None, *rest):
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr)
        self.names[proxy.node] = self.module
        return proxy


@pytest.mark.parametrize("as_leaf", [False, True])
@every_layer
def test_feature_extraction(name, as_leaf):
    """The output of one named module within a network."""
    layer, given = randomised(name)
    tracer = FeatureExtractor((type(layer),) if as_leaf else ())
    graph = tracer.trace(Named(layer, len(given)).eval())
    wanted = [node for node in graph.nodes if tracer.names.get(node) == "block.layer"][-1]
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (wanted,)
    extractor = fx.GraphModule(tracer.root, graph)
    extractor.graph.eliminate_dead_code()
    extractor.recompile()
    torch.testing.assert_close(extractor(*given), layer(*given))


FUNCTIONS = {
    "deform_conv1d": lambda x, w, o, m: dcnzoo.ops.deform_conv1d(x, w, o, m, padding=1),
    "deform_conv2d": lambda x, w, o, m: dcnzoo.ops.deform_conv2d(x, w, o, m, padding=1),
    "deform_conv3d": lambda x, w, o, m: dcnzoo.ops.deform_conv3d(x, w, o, m, padding=1),
    "deform_conv_transpose2d": lambda x, w, o, m: dcnzoo.ops.deform_conv_transpose2d(x, w, o, m, padding=1),
    "roi_align": lambda x, r: dcnzoo.ops.roi_align(x, r, (3, 2), 0.5, 2, "max"),
    "deform_roi_pool": lambda x, r, o: dcnzoo.ops.deform_roi_pool(x, r, o, (3, 2), 0.5, 2),
    "mask_softmax2d": lambda m: dcnzoo.ops.mask_softmax2d(m, 3),
    "nms": lambda b, s: dcnzoo.ops.nms(b, s, 0.3),
    "flash_deform_attn": lambda v, sh, st, a: dcnzoo.ops.flash_deform_attn(v, sh, st, a),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fx_traces_functions(name):
    torch.manual_seed(0)
    if "conv" in name:
        rank = int(name[-2])
        fields = torch.randn(2, 3**rank * rank, *SIZES[rank]), torch.rand(2, 3**rank, *SIZES[rank])
        given = maps(rank), torch.randn(4, 4, *[3] * rank), *fields
    else:
        given = {
            "roi_align": (maps(2), BOXES),
            "deform_roi_pool": (maps(2), BOXES, torch.randn(3, 2, 3, 2)),
            "mask_softmax2d": (torch.randn(2, 18, 4, 5),),
            "nms": (BOXES[:, 1:], torch.rand(3)),
            "flash_deform_attn": (torch.randn(2, 26, 2, 4), SHAPES, STARTS, torch.rand(2, 6, 2, 18)),
        }[name]
    traced = fx.symbolic_trace(FUNCTIONS[name])
    torch.testing.assert_close(traced(*given), FUNCTIONS[name](*given))


# torch.jit.script


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("MultiScale")])  # docs/layers.md
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
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_scripted_pools(size, mode):
    align, pool = map(torch.jit.script, (dcnzoo.ops.roi_align, dcnzoo.ops.deform_roi_pool))
    given = maps(2), BOXES
    expected = dcnzoo.ops.roi_align(*given, size, 0.5, 2, mode, False)
    torch.testing.assert_close(align(*given, size, 0.5, 2, mode, False), expected)
    offset = torch.randn(3, 2, *expected.shape[2:])
    expected = dcnzoo.ops.deform_roi_pool(*given, offset, size, 0.5, 2)
    torch.testing.assert_close(pool(*given, offset, size, 0.5, 2, 0.1), expected)
    with pytest.raises(torch.jit.Error, match="pool_mode: expected 'avg' or 'max', got 'mean'"):
        align(*given, size, 0.5, 2, "mean", False)


NO_COMPUTATION = ("has_ops", "with_cuda", "problems", "cpu_capability")


@pytest.mark.parametrize("name", [name for name in dcnzoo.ops.__all__ if name not in NO_COMPUTATION])
def test_every_function_scripts(name):
    torch.jit.script(getattr(dcnzoo.ops, name))
