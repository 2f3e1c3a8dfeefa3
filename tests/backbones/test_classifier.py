"""``dcnzoo.backbones``: the published sizes and the official ImageNet classifiers."""

import re

import pytest
import torch
from torch.nn import functional as F

from dcnzoo import backbones
from dcnzoo.backbones import FlashInternImage, InternImage
from dcnzoo.backbones.sizes import SIZES
from tests.helpers.modules import randomise, shapes

TINY = dict(channels=16, depths=(1, 1, 2, 1), groups=(1, 2, 4, 8))

# millions of parameters, from the authors' tables of classifiers
PUBLISHED = {
    **dict(internimage_t=30, internimage_s=50, internimage_b=97, internimage_l=223, internimage_xl=335),
    **dict(internimage_h=1080, internimage_g=3000),
    **dict(flash_internimage_t=30, flash_internimage_s=50, flash_internimage_b=97, flash_internimage_l=223),
}

# offset_scale in the authors' configs; the other models have 1
OFFSET_SCALES = dict(internimage_l=2, internimage_xl=2, flash_internimage_b=0.5, flash_internimage_l=2)


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def head_of(name):
    """The names and shapes of the parameters in the authors' heads."""
    channels = SIZES[name][1]["channels"] * 8
    if name not in ("internimage_h", "internimage_g"):
        hidden = channels * 3 // 2
        keys = {"conv_head.0.weight": (hidden, channels, 1, 1), "conv_head.1.0.num_batches_tracked": ()}
        for key in ("weight", "bias", "running_mean", "running_var"):
            keys[f"conv_head.1.0.{key}"] = (hidden,)
        return {**keys, **linear("head", 1000, hidden)}
    keys = {
        "dcnv3_head_x4.0.weight": (4096, channels, 1, 1),
        "dcnv3_head_x4.0.bias": (4096,),
        "dcnv3_head_x3.weight": (1024, channels // 2, 1, 1),
        "dcnv3_head_x3.bias": (1024,),
        **linear("clip_projector.cross_dcn.proj", 768, 1024),
        "fc_norm.0.weight": (768,),
        "fc_norm.0.bias": (768,),
        **linear("head", 1000, 768),
    }
    for part in "qkv":
        keys[f"clip_projector.norm1_{part}.0.weight"] = keys[f"clip_projector.norm1_{part}.0.bias"] = (1024,)
        keys[f"clip_projector.cross_dcn.{part}.weight"] = (1024, 1024)
        keys[f"clip_projector.cross_dcn.{part}_bias"] = (1024,)
    return keys


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_official_classifiers(name, millions):
    build = getattr(backbones, name)
    with torch.device("meta"):
        model, backbone = build(num_classes=1000), build()
    assert type(model) is (FlashInternImage if name.startswith("flash") else InternImage)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.03)
    assert shapes(model) == {**shapes(backbone), **head_of(name)}
    # only models whose branches start at 1e-5 have layer scale parameters
    assert any("gamma" in key for key in shapes(model)) == (name[-1] not in "thg")
    level = model.levels[2]
    assert {block.dcn.offset_scale for block in level.blocks} == {OFFSET_SCALES.get(name, 1)}
    normed = range(5, len(level.blocks), 6) if name[-1] in "hg" else ()  # a norm after each sixth block
    assert level.post_norm_block_ids == [*normed]


def expected_logits(model, maps):
    """The official equations, applied to the maps ``(N, C, H, W)`` of all levels."""
    state = dict(model.state_dict())
    if model.use_clip_projector:
        x = F.conv2d(maps[3], state["dcnv3_head_x4.0.weight"], state["dcnv3_head_x4.0.bias"])
        x = F.pixel_shuffle(x, 2) + F.conv2d(
            maps[2], state["dcnv3_head_x3.weight"], state["dcnv3_head_x3.bias"]
        )
        x = x.flatten(2).mT  # (N, H·W, 1024)

        def project(part, y):  # (N, …, 1024) -> (N, …, 16 heads, 64)
            norm = (state[f"clip_projector.norm1_{part}.0.{key}"] for key in ("weight", "bias"))
            y = F.layer_norm(y, (1024,), *norm, 1e-6)
            weights = (state[f"clip_projector.cross_dcn.{part}{key}"] for key in (".weight", "_bias"))
            return F.linear(y, *weights).unflatten(-1, (16, 64))

        query = project("q", x.mean(1))
        attention = (torch.einsum("nhd,nlhd->nhl", query, project("k", x)) / 8).softmax(-1)
        x = torch.einsum("nhl,nlhd->nhd", attention, project("v", x)).flatten(1)
        x = F.linear(x, *(state[f"clip_projector.cross_dcn.proj.{key}"] for key in ("weight", "bias")))
        x = F.layer_norm(x, (768,), state["fc_norm.0.weight"], state["fc_norm.0.bias"], 1e-6)
    else:
        norm = [state[f"conv_head.1.0.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        x = F.gelu(F.batch_norm(F.conv2d(maps[3], state["conv_head.0.weight"]), *norm))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return F.linear(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("name", ["internimage_t", "internimage_h", "flash_internimage_s"])
def test_logits(name):
    options = dict(TINY, depths=(1, 1, 6, 1), level2_post_norm_block_ids=(5,)) if name[-1] == "h" else TINY
    model = randomise(getattr(backbones, name)(**options, num_classes=7), 0.1).eval()
    backbone = getattr(backbones, name)(**options).eval()
    backbone.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 96)
    logits = model(x)
    torch.testing.assert_close(logits, expected_logits(model, backbone(x)), atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x) - logits).abs().max() < 0.05 * logits.abs().max()
    assert model(x[:0]).shape == (0, 7)
    logits.sin().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.head = torch.nn.Identity()
    assert model(x).shape == (2, model.head_hidden_size)


def test_other_numbers_of_channels_in_the_image():
    model = backbones.flash_internimage_t(**TINY, in_chans=5)
    assert [y.shape[1] for y in model(torch.randn(1, 5, 64, 32))] == [16, 32, 64, 128]
    with pytest.raises(RuntimeError, match=r"x: expected \(N, 5, H, W\), got \(1, 3, 64, 64\)"):
        model(torch.randn(1, 3, 64, 64))


def test_refuses():
    with pytest.raises(ValueError, match=r"num_classes: expected an integer .*got -1"):
        backbones.internimage_t(**TINY, num_classes=-1)
    model = backbones.internimage_t(**TINY, num_classes=3, use_clip_projector=True)
    sizes = re.escape("(3, 4) and (2, 2) on the last two levels")
    with pytest.raises(RuntimeError, match=f"x: expected .* multiple of 32, got {sizes}"):
        model(torch.randn(1, 3, 48, 64))
