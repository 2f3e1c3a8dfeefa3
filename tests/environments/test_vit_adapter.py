"""``nox -s vit_adapter``: the backbone beside the authors' code and Meta's adapter, which run from two paths.

Their code runs unedited on dcnzoo's operator; modules of OpenMMLab's first version are replaced by names.
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
from dcnzoo.compat import patches, provide
from dcnzoo.layers import ms_deform_attn as multi_scale

provide("MultiScaleDeformableAttention")  # also what torchvision lacks, before timm is imported
AUTHORS, META = (os.environ.get(name, "") for name in ("VIT_ADAPTER", "DINOV3"))
pytestmark = pytest.mark.skipif(not AUTHORS, reason="VIT_ADAPTER is not the path of czczup/ViT-Adapter")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
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
    "deit-s, global": (
        "ViTAdapter", dict(embed_dim=192, num_heads=6, window_size=[None] * 12), "deit_small_patch16_224", {}
    ),
    "deit-b": (
        "ViTAdapter",
        dict(embed_dim=192, num_heads=12, deform_num_heads=12, deform_ratio=0.5),
        "deit_base_patch16_224", {},
    ),
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


def module(name, **names):
    """A module with these names, in place of one that is not installed."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(names)


@pytest.fixture(scope="module")
def authors():
    """The module of the authors' backbones."""
    registry = type("Registry", (), {"register_module": lambda self: lambda cls: cls})()
    unused = dict.fromkeys(("load_checkpoint", "my_load_checkpoint", "get_root_logger"))
    module("mmcv.runner", BaseModule=nn.Module, **unused)
    module("mmcv_custom", **unused)
    module("mmdet.models.builder", BACKBONES=registry)
    module("mmdet.utils", **unused)
    for name in ("mmdet", "mmdet.models"):  # without importing MMDetection's
        module(name, __path__=[])
    path = str(Path(AUTHORS) / "detection")
    sys.path[:0] = [path, f"{path}/mmdet_custom/models"]
    yield importlib.import_module("backbones")
    sys.path[:] = [each for each in sys.path if not each.startswith(path)]


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


def compare(ours, theirs, x, zero, maps_of):
    """Compare maps and gradients, relative to each tensor's largest value.

    Args:
        zero: names of gradients that are zero by construction, such as of a bias before a batch norm. None:
            those that are zero up to rounding.

    Returns:
        the error of each map and gradient, and these names
    """
    maps, expected = ours(x), maps_of(theirs(padded(x)))
    assert [[*level.shape[-2:]] for level in maps] == [
        [-(-size // stride) for size in x.shape[-2:]] for stride in (4, 8, 16, 32)
    ]
    seen = [level[..., : a.shape[2], : a.shape[3]] for a, level in zip(maps, expected, strict=True)]
    # of the sum of cubes: with random factors, the stem's gradients are sums of which most cancels
    factors = [level.detach().square() for level in seen]
    theirs_gradients = gradients(theirs, seen, factors)
    # a copy of ours gives theirs our names and forms; Uni-Perceiver adds positions in time to those in space
    converted = copy.deepcopy(ours)
    for parameter in converted.parameters():
        nn.init.zeros_(parameter)
    for name in theirs_gradients:
        if "temporal_pos_embed" in name:
            theirs_gradients[name].zero_()
    converted.load_state_dict(theirs_gradients, strict=False)
    wanted = dict(converted.named_parameters())
    got = gradients(ours, maps, factors)
    if zero is None:
        largest = max(float(g.detach().abs().max()) for g in wanted.values())
        zero = {name for name, g in wanted.items() if float(g.detach().abs().max()) < 1e-12 * largest}
        assert all(float(got[name].abs().max()) < 1e-12 * largest for name in zero & got.keys())
    pairs = {f"map {i}": pair for i, pair in enumerate(zip(maps, seen, strict=True))}
    pairs |= {name: (got[name], wanted[name]) for name in wanted.keys() - zero}
    errors = {n: float((a - b).detach().abs().max() / b.detach().abs().max()) for n, (a, b) in pairs.items()}
    return errors, zero


def compare_all(ours, theirs, prepare, maps_of=list):
    """Compare for batches of 1 and 2, in training and evaluation, in float64 and float32."""
    for training, size, batch in ((True, (224, 256), 1), (False, (250, 333), 2), (True, (250, 333), 2)):
        x, zero = torch.randn(batch, 3, *size, dtype=torch.float64), None
        for dtype, tolerance in TOLERANCES.items():
            prepare(dtype, training)
            with patches.Changes() as changes:
                changes.wrap(multi_scale, "ms_deform_attn", far_from_centres)
                errors, zero = compare(ours, theirs, x.to(dtype), zero, maps_of)
            worst = max(errors, key=errors.get)
            assert errors[worst] <= tolerance, f"{dtype}, {training}, {size}, {worst}: {errors[worst]}"
            print(f"{dtype}: {worst}: {errors[worst]:.1e}")


def far_from_centres(attend, value, shapes, starts, locations, weights):
    """Attend; require that no point is near a pixel's centre, where rounding chooses the gradient."""
    pixels = locations.detach() * shapes.flip(1)[:, None] - 0.5
    assert (pixels - pixels.round()).abs().min() > 1e-3
    return attend(value, shapes, starts, locations, weights)


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
    theirs = disturb(revert_sync_batchnorm(theirs))
    ours = ViTAdapter(**own)
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not result.missing_keys
    assert all("relative_position_index" in key for key in result.unexpected_keys)

    def prepare(dtype, training):
        for each in (ours, theirs):
            each.to(dtype).train(training)
        ours.load_state_dict(theirs.state_dict(), strict=False)  # moments of the batch norms

    compare_all(ours, theirs, prepare)


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
        # without what the packages import
        package = ModuleType(f"dinov3.{name}")
        package.__path__ = [str(Path(META, "dinov3", *name.split(".")))]
        monkeypatch.setitem(sys.modules, f"dinov3.{name}", package)
    code = importlib.import_module("dinov3.eval.segmentation.models.backbone.dinov3_adapter")
    vision_transformer = importlib.import_module("dinov3.models.vision_transformer")
    size = dict(embed_dim=96, depth=8, num_heads=4)
    vit = vision_transformer.DinoVisionTransformer(
        **size,
        n_storage_tokens=4,
        layerscale_init=1.0,
        mask_k_bias=True,
        pos_embed_rope_dtype="fp32",
        norm_layer="layernormbf16",
    )
    vit.init_weights()
    vit = disturb(vit)
    theirs = code.DINOv3_Adapter(
        vit, [1, 3, 5, 7], deform_num_heads=4, deform_ratio=0.5, drop_path_rate=0.0, with_cp=False
    )
    theirs = disturb(revert_sync_batchnorm(theirs))
    ours = ViTAdapter(
        dict(model_name="vit_small_patch16_dinov3_qkvb", **size),
        deform_num_heads=4,
        deform_ratio=0.5,
        injectors=False,
        stage_maps=True,
        final_norm=True,
        prefix_tokens=True,
        frozen=True,
    )
    state = checkpoint_filter_fn(theirs.backbone.state_dict(), ours)
    state |= {name: value for name, value in theirs.state_dict().items() if name[:9] != "backbone."}
    ours.load_state_dict(state)
    rope = vit.rope_embed
    positions = rope.forward

    def prepare(dtype, training):
        for each in (ours, theirs):
            each.to(dtype).train(training)
        vit.eval()
        ours.rope.float(), rope.float()  # both compute positions in float32
        rope.forward = lambda **grid: [each.to(dtype) for each in positions(**grid)]
        moments = {name: value for name, value in theirs.state_dict().items() if name[:9] != "backbone."}
        ours.load_state_dict(moments, strict=False)

    compare_all(ours, theirs, prepare, maps_of=lambda maps: maps.values())
