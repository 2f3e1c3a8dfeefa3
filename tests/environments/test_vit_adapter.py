"""The backbone, compared with the authors' code and Meta's adapter at two paths: ``nox -s vit_adapter``.

Their code runs unedited on dcnzoo's operator; empty names replace modules of OpenMMLab's first version.
"""

import copy
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import nn

from dcnzoo.backbones.vit_adapter import ViTAdapter
from dcnzoo.compat import provide

provide("MultiScaleDeformableAttention")
provide("torchvision")  # for timm: torchvision itself does not load beside a CPU build of torch
AUTHORS, META = (os.environ.get(name, "") for name in ("VIT_ADAPTER", "DINOV3"))
pytestmark = pytest.mark.skipif(not AUTHORS, reason="VIT_ADAPTER is not the path of czczup/ViT-Adapter")
W12 = [14, 14, None] * 4
W24 = [14, 14, None] * 8

# the authors' argument -> ours, where both have the same values
SAME = {
    **{name: name for name in ("deform_num_heads", "deform_ratio", "use_extra_extractor", "init_values")},
    "window_size": "window",
}
BEIT = dict(img_size=224, embed_dim=64, depth=8, num_heads=4, window_size=[14, 56] * 4, deform_num_heads=4)
BEIT |= dict(deform_ratio=0.5, init_values=1e-6, window_attn=True, qkv_bias=True)
# name -> (the authors' class, its arguments, those of timm's ViT, others of ours)
CASES = {
    "deit-t": ("ViTAdapter", dict(embed_dim=192, num_heads=3), "deit_tiny_patch16_224", {}),
    "mae-b": (
        "ViTAdapter",
        dict(embed_dim=192, num_heads=12, deform_num_heads=12, deform_ratio=0.5, layer_scale=False,
             use_extra_extractor=False),
        dict(model_name="vit_base_patch16_224", init_values=None), {},
    ),
    "dinov2-s": (
        "ViTAdapter", dict(embed_dim=192, num_heads=6, img_size=592, pretrain_size=592),
        "vit_small_patch14_dinov2", {},
    ),
    "augreg-l": (
        "ViTAdapter",
        dict(embed_dim=64, depth=24, num_heads=4, window_size=W24, deform_num_heads=4, deform_ratio=0.5,
             img_size=384, pretrain_size=384),
        "vit_large_patch16_384", {},
    ),
    "beit-l": (
        "BEiTAdapter", dict(BEIT, version="old"), "beit_large_patch16_224",
        dict(pad_input=True, stage_maps=True),
    ),
    "beitv2-l": ("BEiTAdapter", BEIT, "beitv2_large_patch16_224", dict(pad_input=True)),
    "uni-perceiver-b": (
        "UniPerceiverAdapter",
        dict(embed_dim=96, num_heads=4, deform_num_heads=4, deform_ratio=0.5),
        dict(model_name="vit_base_patch16_224", class_token=False, global_pool="avg", pre_norm=True),
        dict(pad_input=True, patch_bias=True, norm_eps=1e-5),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def authors():
    """The module of the authors' backbones, without importing MMDetection's packages."""
    registry = type("Registry", (), {"register_module": lambda self: lambda cls: cls})()
    unused = dict.fromkeys(("load_checkpoint", "my_load_checkpoint", "get_root_logger"))
    for name, names in {
        "mmcv.runner": {"BaseModule": nn.Module, **unused},
        "mmcv_custom": unused,
        "mmdet": {"__path__": []},
        "mmdet.models": {"__path__": []},
        "mmdet.models.builder": {"BACKBONES": registry},
        "mmdet.utils": unused,
    }.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(names)
    path = str(Path(AUTHORS) / "detection")
    sys.path[:0] = [path, f"{path}/mmdet_custom/models"]
    yield importlib.import_module("backbones")
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(path)]


def padded(x):
    height, width = (-size % 32 for size in x.shape[-2:])
    return nn.functional.pad(x, (0, width, 0, height))


@torch.no_grad()
def disturb(adapter):
    """Change each initial value a little, so that no factor and no offset is zero.

    Points stay near odd eighths of a pixel: at a pixel's centre, a sample has two gradients, and rounding
    chooses one. Without offsets, they are at quarters, as the strides are multiples of each other.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapter.named_parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        if name.endswith("sampling_offsets.weight"):
            parameter.mul_(0.2 / parameter.shape[1] ** 0.5)
        elif name.endswith("sampling_offsets.bias"):
            parameter.round_().add_(0.125)
    return adapter


def gradients(adapter, maps, factors):
    adapter.zero_grad()
    sum((level * factor).sum() for level, factor in zip(maps, factors, strict=True)).backward()
    return {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}


def size_of(tensor):
    return float(tensor.detach().abs().max())


def converted_gradients(ours, theirs):
    """Return their gradients in our names and shapes: a copy of our model loads them as its weights."""
    for name, gradient in theirs.items():
        if "temporal_pos_embed" in name:  # ours has Uni-Perceiver's positions in time added to those in space
            gradient.zero_()
    copied = copy.deepcopy(ours)
    for parameter in copied.parameters():
        nn.init.zeros_(parameter)
    copied.load_state_dict(theirs, strict=False)
    return dict(copied.named_parameters())


def compare(ours, theirs, training, size, batch):
    """Compare maps and gradients in float64, within 1e-12 of each tensor's largest value."""
    x = torch.randn(batch, 3, *size, dtype=torch.float64)
    ours.train(training), theirs.train(training)
    maps, expected = ours(x), theirs(padded(x))
    expected = expected.values() if isinstance(expected, dict) else expected
    for level, stride in zip(maps, (4, 8, 16, 32), strict=True):
        assert [*level.shape[-2:]] == [-(-pixels // stride) for pixels in size]
    expected = [level[..., : a.shape[2], : a.shape[3]] for a, level in zip(maps, expected, strict=True)]
    # gradients of the sum of cubes: with random factors, the terms of the stem's gradients nearly cancel
    factors = [level.detach().square() for level in expected]
    actual = gradients(ours, maps, factors)
    theirs_gradients = converted_gradients(ours, gradients(theirs, expected, factors))
    pairs = {f"map {i}": pair for i, pair in enumerate(zip(maps, expected, strict=True))}
    negligible = 1e-12 * max(map(size_of, theirs_gradients.values()))
    for name, gradient in theirs_gradients.items():
        if size_of(gradient) >= negligible:
            pairs[name] = actual[name], gradient
        else:  # zero by construction, such as of a bias before a batch norm
            assert name not in actual or size_of(actual[name]) < negligible, name
    for name, (a, b) in pairs.items():
        assert size_of(a - b) <= 1e-12 * size_of(b), f"{training}, {size}, {name}"


# training, size of the pictures, batch
INPUTS = [(True, (224, 256), 1), (False, (250, 333), 2), (True, (250, 333), 2)]


@pytest.mark.parametrize("case", CASES)
def test_authors(authors, case):
    name, options, vit, own = CASES[case]
    options = {"window_size": W12, "deform_num_heads": 6, **options}
    options.setdefault("window_attn", [size is not None for size in options["window_size"]])
    size = {key: options[key] for key in ("embed_dim", "depth", "num_heads") if key in options}
    if name != "BEiTAdapter":
        size["init_values"] = 1.0
    vit = dict(vit) if isinstance(vit, dict) else dict(model_name=vit)
    own = own | {ours: options[key] for key, ours in SAME.items() if key in options} | dict(vit=size | vit)
    depth = options.get("depth", 12)
    indexes = [[i * depth // 4, (i + 1) * depth // 4 - 1] for i in range(4)]
    theirs = getattr(authors, name)(**options, interaction_indexes=indexes)
    theirs = disturb(revert_sync_batchnorm(theirs)).double()
    ours = ViTAdapter(**own).double()
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not result.missing_keys
    assert all("relative_position_index" in key for key in result.unexpected_keys)
    for inputs in INPUTS:
        compare(ours, theirs, *inputs)


@pytest.mark.skipif(not META, reason="DINOV3 is not the path of facebookresearch/dinov3")
def test_meta(monkeypatch):
    """Meta's adapter for DINOv3: no injectors, a frozen ViT, maps of their own stages, the last norm."""
    from timm.models.eva import checkpoint_filter_fn

    monkeypatch.syspath_prepend(META)
    for name in (
        "eval",
        "eval.segmentation",
        "eval.segmentation.models",
        "eval.segmentation.models.backbone",
    ):
        package = ModuleType(f"dinov3.{name}")  # an empty package, which imports nothing
        package.__path__ = [str(Path(META, "dinov3", *name.split(".")))]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    code = importlib.import_module("dinov3.eval.segmentation.models.backbone.dinov3_adapter")
    vision_transformer = importlib.import_module("dinov3.models.vision_transformer")
    size = dict(embed_dim=96, depth=8, num_heads=4)
    vit = vision_transformer.DinoVisionTransformer(
        **size, n_storage_tokens=4, layerscale_init=1.0, mask_k_bias=True, pos_embed_rope_dtype="fp32",
        norm_layer="layernormbf16",
    )  # fmt: skip
    vit.init_weights()
    disturb(vit)
    theirs = code.DINOv3_Adapter(
        vit, [1, 3, 5, 7], deform_num_heads=4, deform_ratio=0.5, drop_path_rate=0.0, with_cp=False
    )
    theirs = disturb(revert_sync_batchnorm(theirs))
    ours = ViTAdapter(
        dict(model_name="vit_small_patch16_dinov3_qkvb", **size), deform_num_heads=4, deform_ratio=0.5,
        injectors=False, stage_maps=True, final_norm=True, prefix_tokens=True, frozen=True,
    )  # fmt: skip
    state = checkpoint_filter_fn(theirs.backbone.state_dict(), ours)
    state |= {name: value for name, value in theirs.state_dict().items() if name[:9] != "backbone."}
    ours.load_state_dict(state)
    for each in (ours, theirs):
        each.double()
    positions = vit.rope_embed.float().forward
    vit.rope_embed.forward = lambda **grid: [each.double() for each in positions(**grid)]
    ours.rope.float()  # both compute positions in float32
    vit.eval().train = lambda training: vit  # frozen, as ours
    for inputs in INPUTS:
        compare(ours, theirs, *inputs)
