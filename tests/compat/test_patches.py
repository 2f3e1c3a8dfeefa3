"""dcnzoo's patches of other packages can be switched off, and a compiled mmcv keeps its GPU kernels."""

import importlib
import sys
from types import SimpleNamespace

import mmcv.ops
import pytest
import torch
from mmengine.registry import MODELS

import dcnzoo.models
import dcnzoo.openmmlab.datasets  # these two add all patches
from dcnzoo.compat import patches
from dcnzoo.openmmlab.patches import devices, kernels
from dcnzoo.ops import _library
from tests.helpers.modules import randomise
from tests.helpers.patching import without
from tests.helpers.processes import run_code

LAYER = dict(in_channels=4, out_channels=6, kernel_size=(3, 2), padding=1)

# Each patch: applied, undone, not needed

TABLE = patches.table()
each_patch = pytest.mark.parametrize("patch", TABLE, ids=lambda patch: f"{patch.name}-{patch.target}")
# State that patches change other than by Changes.set and set_item
OTHERWISE = {
    "load_own_checkpoints": lambda: set(torch.serialization.get_safe_globals()),
}


class Recorded(patches.Changes):
    """Changes that record their owners and names."""

    def __init__(self):
        super().__init__()
        self.places = []

    def set(self, owner, name, value):
        self.places.append((owner, name))
        super().set(owner, name, value)

    def set_item(self, mapping, key, value):
        self.places.append((mapping, key))
        super().set_item(mapping, key, value)


def places(patch):
    with Recorded() as changes:
        patch.change(changes)
    return changes.places


def state(patch, where):
    other = OTHERWISE.get(patch.name, lambda: None)()
    mappings = ((owner if isinstance(owner, dict) else vars(owner), name) for owner, name in where)
    return [mapping.get(name, "absent") for mapping, name in mappings], other


@pytest.fixture
def undone(patch):
    """The patch, not applied. Restores its state after the test."""
    applied, needed = patch.applied, patch.needed
    patch.undo()
    yield patch
    patch.undo()
    patch.needed = needed
    if applied:
        patch.apply()


@each_patch
def test_a_patch_is_applied_and_undone(undone):
    undone.needed = lambda: False
    where = places(undone)
    original, _ = before = state(undone, where)
    undone.apply()
    assert not undone.applied and state(undone, where) == before
    undone.needed = lambda: True
    assert where or undone.name in OTHERWISE
    for _ in range(2):
        undone.apply()
        assert undone.applied and undone.name in patches.active()
        changed, other = state(undone, where)
        assert all(new is not old for new, old in zip(changed, original, strict=True))
        assert other != before[1] or undone.name not in OTHERWISE
        undone.apply()  # a second call has no effect
        assert state(undone, where) == (changed, other)
        patches.add(undone, complete=True)  # nor has a second addition
        assert state(undone, where) == (changed, other)
        undone.undo()
        assert not undone.applied and state(undone, where) == before


def test_no_two_patches_change_the_same():
    """Patches can therefore be undone in any order. Their names are valid in DCNZOO_PATCHES."""
    found = [(id(owner), name) for patch in TABLE for owner, name in places(patch)]
    assert len(found) == len(set(found))
    registered = {patch.name for patch in TABLE if "in the registry" in patch.target}
    assert {"DCN", "CocoDataset"} <= registered and registered & set(patches.active())
    assert {patch.name for patch in TABLE} >= set(patches.OF_DATA)


def test_a_patch_that_fails_halfway_is_undone():
    class Owner:
        pass

    def change(changes):
        changes.set(Owner, "name", 1)
        raise KeyError("halfway")

    patch = patches.Patch("some", "Owner.name", "for this test", "all", change)
    with pytest.raises(KeyError):
        patch.apply()
    assert not patch.applied and not hasattr(Owner, "name")


def test_a_patch_that_does_not_fit_the_version_is_named():
    def change(changes):
        changes.wrap(patches, "renamed_meanwhile", lambda original: original())

    patch = patches.Patch("some", "Owner.name", "for this test", "package 1.0", change)
    with pytest.raises(RuntimeError, match=r"^some: expected package 1\.0, .*DCNZOO_PATCHES=-some"):
        patch.apply()
    assert not patch.applied


def test_changes_are_undone_in_reverse():
    class Parent:
        def method(self):
            return "parent's"

        @classmethod
        def of_class(cls):
            return cls.__name__

    class Child(Parent):
        pass

    mapping, before = {"a": 1}, dict(vars(Parent))
    with patches.Changes() as changes:
        changes.set(Child, "method", lambda self: "new")
        changes.wrap(Child, "method", lambda original, self: f"wrapped {original(self)}")
        changes.set(Parent, "of_class", classmethod(lambda cls: "new"))
        changes.set_item(mapping, "a", 2)
        changes.set_item(mapping, "b", 3)
        assert (Child().method(), Child.of_class(), mapping) == ("wrapped new", "new", {"a": 2, "b": 3})
    assert (Child().method(), Child.of_class(), mapping) == ("parent's", "Child", {"a": 1})
    assert "method" not in vars(Child) and dict(vars(Parent)) == before


# The variable


@pytest.mark.parametrize(
    ("value", "on", "off"),
    [
        ("", ["deform_conv", "DCN", "ssd_head"], ["cuda"]),
        ("off", [], ["deform_conv", "DCN", "ssd_head", "cuda"]),
        ("-deform_conv, -DCN", ["DCNv2", "ssd_head"], ["deform_conv", "DCN", "cuda"]),
        ("deform_conv,DCN", ["deform_conv", "DCN"], ["DCNv2", "ssd_head", "cuda"]),
        ("cuda", ["deform_conv", "DCN", "cuda"], []),
        ("cuda,-DCN", ["deform_conv", "cuda"], ["DCN"]),
        ("deform_conv,cuda", ["deform_conv", "cuda"], ["DCN"]),
    ],
)
def test_the_variables_values(value, on, off):
    switches = patches._parse(value)
    assert all(switches[name] for name in on) and not any(switches[name] for name in off)


@pytest.mark.parametrize("value", ["deform_con", "-resnet", "off,DCN", "none"])
def test_names_that_do_not_exist(value, monkeypatch):
    with pytest.raises(RuntimeError, match=rf"DCNZOO_PATCHES: expected .*{value.split(',')[0].lstrip('-')}"):
        monkeypatch.setattr(patches, "_switches", patches._parse(value))
        patches.add(complete=True)


def test_the_variable():
    """It works in a process without torch, also for ssd_head, which ``dcnzoo.models`` has not added yet."""
    text = "from dcnzoo.compat import patches; print(patches.enabled('DCN'), patches.enabled('DCNv2'))"
    assert run_code(text, DCNZOO_PATCHES="-DCN,-ssd_head") == "False True\n"


# The choice of kernels with a compiled mmcv


@pytest.fixture
def compiled(monkeypatch):
    """Pretend that mmcv is compiled for the CPU and CUDA."""
    monkeypatch.setattr(devices, "compiled_devices", ("cpu", "cuda"))


CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda:1"), torch.device("meta")


@pytest.mark.parametrize("operator", kernels.OPERATORS)
def test_a_compiled_mmcv_keeps_its_gpu_kernels(operator, compiled, monkeypatch):
    def choices():
        return [devices.runs_on_dcnzoo(operator, device) for device in (CPU, CUDA, OTHER)]

    assert choices() == [True, False, False]
    with monkeypatch.context() as without_library:
        without_library.setattr(_library, "loaded", {})
        assert choices() == [False, False, False]
    with monkeypatch.context() as with_cuda:
        with_cuda.setattr(patches, "_switches", patches._parse("cuda"))
        assert choices() == [True, True, False]
    monkeypatch.setattr(devices, "compiled_devices", ("cpu",))
    assert choices() == [True, True, False]  # mmcv has no CUDA kernels
    with without(operator):
        assert not any(choices())
        monkeypatch.setattr(devices, "compiled_devices", None)  # mmcv-lite
        assert all(choices())


ATTENTION = dict(
    query=torch.ones(5, 2, 12),
    value=torch.linspace(-1, 1, 288).view(12, 2, 12),
    reference_points=torch.linspace(0, 1, 20).view(2, 5, 1, 2),
    spatial_shapes=torch.tensor([[3, 4]]),
    level_start_index=torch.tensor([0]),
)


@pytest.mark.parametrize(
    ("options", "given", "operator", "module", "function"),
    [
        *(
            (dict(type=name, **LAYER, bias=bias, im2col_step=2), {}, operator, "mmcv.ops", function)
            for name, operator, function in (
                ("DCN", "deform_conv", "deform_conv2d"),
                ("DCNv2", "modulated_deform_conv", "modulated_deform_conv2d"),
            )
            for bias in (True, False)
        ),
        (
            dict(type="MultiScaleDeformableAttention", embed_dims=12, num_heads=3, num_levels=1, dropout=0.0),
            ATTENTION,
            *("multi_scale_deform_attn", "mmcv.ops.multi_scale_deform_attn"),
            "multi_scale_deformable_attn_pytorch",
        ),
    ],
)
def test_layers_call_mmcv_where_its_kernels_stay(
    options, given, operator, module, function, compiled, monkeypatch
):
    layer = randomise(MODELS.build(options))
    inputs = () if given else (torch.randn(3, 4, 7, 9).to(memory_format=torch.channels_last),)
    expected = layer(*inputs, **given)
    with without(operator), monkeypatch.context() as patched:
        calls, original = [], getattr(sys.modules[module], function)
        patched.setattr(
            sys.modules[module], function, lambda *args: calls.append(function) or original(*args)
        )
        got = layer(*inputs, **given)
    assert calls == [function]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["deformable_detr_layers", "grounding_dino_layers"])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_mmdetections_detrs_construct_dcnzoos_attention(name, coordinates):
    module = importlib.import_module(f"mmdet.models.layers.transformer.{name}")

    def build(kind):
        assert module.MultiScaleDeformableAttention is kind
        torch.manual_seed(0)
        return kind(12, 3, num_levels=2, batch_first=True).eval()

    with without("MultiScaleDeformableAttention"):
        theirs = build(mmcv.ops.MultiScaleDeformableAttention)
    ours = build(dcnzoo.models.MultiScaleDeformableAttention)
    for parameter, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[parameter], value)
    ours.load_state_dict(randomise(theirs).state_dict())
    shapes = torch.tensor([[5, 4], [3, 2]])
    given = dict(
        query=torch.randn(2, 7, 12),
        value=torch.randn(2, 26, 12),
        query_pos=torch.randn(2, 7, 12),
        key_padding_mask=torch.rand(2, 26) > 0.8,
        reference_points=torch.rand(2, 7, 2, coordinates),
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, 20]),
    )
    expected = theirs(**given)
    for dtype in (torch.int64, torch.int32):
        assert torch.equal(ours(**{**given, "spatial_shapes": shapes.to(dtype)}), expected)


def test_kernels_are_chosen_by_the_tensors_device(compiled):
    ours, theirs = (
        SimpleNamespace(forward=lambda tensor, scale, by=by: (by, scale)) for by in ("dcnzoo", "mmcv")
    )
    extension = kernels.ByDevice("deform_conv", ours, theirs)
    assert extension.forward(torch.zeros(1), 2) == ("dcnzoo", 2)
    assert extension.forward(torch.zeros(1, device="meta"), scale=3) == ("mmcv", 3)
    with without("deform_conv"):
        assert extension.forward(torch.zeros(1), 2) == ("mmcv", 2)
    steps = [((6, 4), 3), ((7, 4), 1), ((64, 32), 32), ((3, None), 3), ((66, None), 22), ((0, 4), 1)]
    assert all(devices.largest_step(*arguments) == expected for arguments, expected in steps)


def test_mmcvs_attention_in_pytorch_stays_where_dcnzoo_has_no_kernels(monkeypatch):
    """There, mmcv runs F.grid_sample, which takes a quarter of the time of dcnzoo's oracle."""
    for loaded in ((), ("cpu",), ("cpu", "cuda")):
        monkeypatch.setattr(devices._library, "loaded", dict.fromkeys(loaded))
        assert [d.type for d in (CPU, CUDA, OTHER) if devices.attends_on_dcnzoo(d)] == [*loaded]
