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
from tests.helpers.layers import BOXES, CASES, maps, randomised

every_layer = pytest.mark.parametrize("name", CASES)
# One layer of each class; of convolutions, those of images, whose code 1d and 3d share.
CHOSEN = {name.partition("-")[0]: name for name in CASES if not re.search("[13]d-", name)}.values()
chosen_layers_first = pytest.mark.parametrize(
    "name", [n if n in CHOSEN else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


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

    tracer = Tracer()
    traced = fx.GraphModule(network, tracer.trace(network))
    assert layer in seen and "is_leaf_module" not in vars(tracer)
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
