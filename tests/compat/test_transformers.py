"""``dcnzoo.compat.transformers`` finds families and rejects changed ones, in a package written by the tests.

The families of the real package: ``tests/environments/test_transformers.py``.
"""

import importlib
import sys

import pytest
import torch

from dcnzoo.compat import patches
from dcnzoo.compat import transformers as compat

SAMPLE = """
import torch
import torch.nn.functional as F

def sample(value, sizes, locations, weights):
    batch, _, heads, channels = value.shape
    output = 0
    for level, (height, width) in enumerate(sizes):
        start = sum(h * w for h, w in sizes[:level])
        pixels = value[:, start : start + height * width].permute(0, 2, 3, 1)
        grid = 2 * locations[level].transpose(1, 2).flatten(0, 1) - 1
        read = F.grid_sample(pixels.reshape(-1, channels, height, width), grid, align_corners=False)
        read = read.unflatten(0, (batch, heads)) * weights[level].transpose(1, 2)[:, :, None]
        output = output + read.sum(-1)
    return output.permute(0, 3, 1, 2).flatten(2)
"""
LAYER = f"""{SAMPLE}
class MultiScaleDeformableAttention(torch.nn.Module):
    def forward(self, value, value_spatial_shapes, value_spatial_shapes_list, level_start_index,
                sampling_locations, attention_weights, im2col_step):
        levels = sampling_locations.unbind(3), attention_weights.unbind(3)
        return sample(value, value_spatial_shapes_list, *levels)
"""
FUNCTION = f"""{SAMPLE}
def multi_scale_deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights):
    return sample(value, value_spatial_shapes, sampling_locations.unbind(3), attention_weights.unbind(3))

class NewDeformableAttention(torch.nn.Module):
    def forward(self, value):
        return value
"""
FUNCTION_V2 = f"""{SAMPLE}
def multi_scale_deformable_attention_v2(value, value_spatial_shapes, sampling_locations, attention_weights,
                                        num_points_list, method="default"):
    points = [t.split(num_points_list, 3) for t in (sampling_locations, attention_weights)]
    return sample(value, value_spatial_shapes, *points)
"""
SOURCES = {"layer": LAYER, "function": FUNCTION, "function_v2": FUNCTION_V2}


@pytest.fixture
def family(package, monkeypatch):
    """A function that writes a family's module into a package named transformers."""
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    yield lambda family, source: package(f"transformers.models.{family}.modeling_{family}", source)
    compat.disable()


def functions(module):
    names = ("multi_scale_deformable_attention", "multi_scale_deformable_attention_v2")
    found = [vars(module)[name] for name in names if name in vars(module)]
    if hasattr(module, "MultiScaleDeformableAttention"):
        found.append(module.MultiScaleDeformableAttention.forward)
    return found


SIZES = [(5, 4), (2, 3)]


def sampled(kind, module, value, locations, weights):
    """The output for levels with 3 points each; of ``function_v2``, with 2 and 4."""
    match kind:
        case "layer":
            shapes, starts = torch.tensor(SIZES), torch.tensor([0, 20])
            layer = module.MultiScaleDeformableAttention()
            return layer(value, shapes, SIZES, starts, locations, weights, im2col_step=64)
        case "function":
            return module.multi_scale_deformable_attention(value, SIZES, locations, weights)
        case "function_v2":
            flat = locations.flatten(3, 4), weights.flatten(3)
            return module.multi_scale_deformable_attention_v2(value, SIZES, *flat, [2, 4])


def tensors(dtype=torch.float64):
    torch.manual_seed(0)
    value, locations = torch.randn(2, 26, 3, 4), torch.rand(2, 7, 3, 2, 3, 2) * 1.4 - 0.2
    return [t.to(dtype).requires_grad_() for t in (value, locations, torch.rand(2, 7, 3, 2, 3))]


def call(kind, module):
    return sampled(kind, module, *tensors())


@pytest.fixture
def runs_ours(monkeypatch):
    """Run a call. Returns its output and whether it ran on dcnzoo's kernels."""
    calls = []
    attend = compat._attend
    monkeypatch.setattr(compat, "_attend", lambda *args: (calls.append(args), attend(*args))[1])

    def run(kind, module):
        calls.clear()
        output = call(kind, module)
        return output, bool(calls)

    return run


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("first", ["enable", "import"])
def test_a_new_family_is_found(family, runs_ours, kind, first):
    name, finders = family("new_detr", SOURCES[kind]), list(sys.meta_path)
    if first == "enable":
        compat.enable()
        assert "transformers" not in sys.modules
        assert compat.families() == []
        module = importlib.import_module(name)
    else:
        module = importlib.import_module(name)
        compat.enable()
    assert compat.families() == ["new_detr"]
    assert "transformers" in patches.active()
    ours, ran = runs_ours(kind, module)
    assert ran
    compat.disable()
    compat.disable()
    assert compat.families() == [] and sys.meta_path == finders, "imports are not watched any more"
    assert "transformers" not in patches.active()
    theirs, ran = runs_ours(kind, module)
    assert not ran
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    with compat.enabled():
        assert compat.families() == ["new_detr"]
        with compat.enabled(), patches.disabled("transformers"):
            assert compat.families() == []
        assert compat.families() == ["new_detr"]
    assert compat.families() == []


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_and_dtypes(family, kind, dtype):
    """In each dtype, and under autocast for float32 locations and a value in half precision."""
    module = importlib.import_module(family("new_detr", SOURCES[kind]))
    results = []
    for enabled in (False, True):
        (compat.enable if enabled else compat.disable)()
        leaves = tensors(dtype)
        outputs = [sampled(kind, module, *leaves)]
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(sampled(kind, module, leaves[0].bfloat16(), *(t.float() for t in leaves[1:])))
        results.append([*outputs, *torch.autograd.grad(outputs[0].sin().sum(), leaves)])
    for theirs, ours in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = 1e-5 if ours.dtype == torch.float32 else 0.1  # the original also rounds its sums
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("kind", SOURCES)
def test_exports_are_the_original(family, kind):
    module = importlib.import_module(family("new_detr", SOURCES[kind]))

    class Layer(torch.nn.Module):
        def forward(self, *given):
            return sampled(kind, module, *given)

    given = tuple(tensor.detach() for tensor in tensors())
    with compat.enabled():
        graphs = torch.export.export(Layer(), given).graph, torch.jit.trace(Layer(), given).inlined_graph
    for graph in map(str, graphs):
        assert "grid_sampler" in graph and "dcnzoo" not in graph


@pytest.mark.parametrize("first", ["enable", "import"])
def test_a_family_with_another_one_s_function(family, runs_ours, first):
    family("old_detr", FUNCTION)
    name = family("new_detr", "from ..old_detr.modeling_old_detr import multi_scale_deformable_attention")
    if first == "import":
        importlib.import_module(name)
    compat.enable()
    module = importlib.import_module(name)
    kept = module.multi_scale_deformable_attention  # as by a layer
    assert compat.families() == ["new_detr", "old_detr"]
    assert runs_ours("function", module)[1]
    compat.disable()
    assert not runs_ours("function", module)[1]
    module.multi_scale_deformable_attention = kept
    assert not runs_ours("function", module)[1]


def test_a_kernel_layer_of_another_name(family):
    renamed = LAYER.replace("class MultiScale", "class NewMultiScale")
    renamed += '    kernel_layer_name = "MultiScaleDeformableAttention"  # of the decorator\n'
    importlib.import_module(family("new_detr", renamed))
    compat.enable()
    assert compat.families() == ["new_detr"]


CHANGES = {
    "argument": ("layer", "level_start_index", "level_starts"),
    "default": ("function_v2", 'method="default"', 'method="discrete"'),
    "corners": ("layer", "align_corners=False", "align_corners=True"),
    "corners_of_a_function": ("function", "align_corners=False", "align_corners=True"),
    "coordinates": ("function_v2", "2 * locations", "3 * locations"),
    "layout": ("function", "permute(0, 3, 1, 2).flatten(2)", "permute(0, 3, 2, 1).flatten(2)"),
    "shape": ("function", ".flatten(2)", ""),
    "error": ("layer", "output = 0", "raise NotImplementedError"),
    "state": ("layer", "return sample(", "return self.factor * sample("),
    "decorator": ("function", "def multi", "@(lambda function: lambda *args: function(*args))\ndef multi"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_family_stays_and_is_named(family, change):
    kind, before, after = CHANGES[change]
    assert before in SOURCES[kind]
    good = family("old_detr", LAYER)
    changed = family("new_detr", SOURCES[kind].replace(before, after))
    module = importlib.import_module(changed)
    originals = functions(module)
    with pytest.warns(UserWarning, match=r"dcnzoo.compat.transformers: new_detr: expected .*, got") as caught:
        compat.enable()
        importlib.import_module(good)
    assert sum("new_detr" in str(warning.message) for warning in caught) == 1
    assert compat.families() == ["old_detr"]
    assert functions(module) == originals


def test_other_families_are_left_alone(family, recwarn):
    family("old_detr", FUNCTION)
    inherits = "class MoreDeformableAttention(NewDeformableAttention):\n    pass\n"
    sources = {
        "new_bert": "class NewAttention:\n    def forward(self, value):\n        return value\n",
        "new_detr": f"from ..old_detr.modeling_old_detr import NewDeformableAttention\n{inherits}",
    }
    modules = [importlib.import_module(family(name, source)) for name, source in sources.items()]
    compat.enable()
    assert compat.families() == ["old_detr"]
    assert modules[0].NewAttention().forward(3) == 3
    assert not recwarn


def test_an_import_inside_a_meta_device_or_autocast_is_not_taken_for_a_change(family, recwarn):
    name = family("new_detr", LAYER)
    compat.enable()
    with torch.device("meta"), torch.autocast("cpu"):
        importlib.import_module(name)
    assert compat.families() == ["new_detr"]
    assert not recwarn


def test_random_numbers_are_left_alone(family):
    importlib.import_module(family("new_detr", FUNCTION))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    compat.enable()
    assert compat.families() == ["new_detr"]
    assert torch.rand(3).equal(expected)


def test_the_original_runs_where_dcnzoo_has_no_kernels(family, runs_ours, monkeypatch):
    module = importlib.import_module(family("new_detr", LAYER))
    compat.enable()
    monkeypatch.setattr("dcnzoo.ops._library.loaded", {})
    assert not runs_ours("layer", module)[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_device_that_is_not_proven_needs_the_switch(family, runs_ours, monkeypatch, compiled):
    module = importlib.import_module(family("new_detr", FUNCTION))
    with compat.enabled():
        if compiled:
            function = torch.compile(module.multi_scale_deformable_attention, backend="eager", fullgraph=True)
            monkeypatch.setattr(module, "multi_scale_deformable_attention", function)
        monkeypatch.setattr(compat, "DEFAULT_DEVICES", ())
        assert not runs_ours("function", module)[1]
        patches.enable(patches.CUDA)
        try:
            assert runs_ours("function", module)[1]
        finally:
            patches.disable(patches.CUDA)
        assert not runs_ours("function", module)[1]


def test_transformers_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    with pytest.raises(ImportError, match="transformers: expected an installed package"):
        compat.enable()
