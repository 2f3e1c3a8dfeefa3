"""``dcnzoo.compat.timm``: ``nox -s others``."""

import pytest
import torch
from torch import nn

from dcnzoo import backbones
from dcnzoo.backbones.sizes import SIZES

from ..modules import randomise, shapes

timm = pytest.importorskip("timm", exc_type=ImportError)
optim = pytest.importorskip("timm.optim", exc_type=ImportError)
pytest.importorskip("dcnzoo.compat.timm", exc_type=ImportError)


TINY = dict(channels=16, depths=(1, 2, 2, 1), groups=(1, 2, 4, 8))


@pytest.mark.parametrize("name", sorted(SIZES))
def test_has_every_published_size(name):
    with torch.device("meta"):
        model, plain = timm.create_model(name), getattr(backbones, name)(num_classes=1000)
        features = timm.create_model(name, features_only=True)
    assert shapes(model) == shapes(plain)
    size, cfg = model.pretrained_cfg["input_size"][1], model.pretrained_cfg
    assert str(size) in cfg["hf_hub_filename"] and f"image_{name.split('_')[-1]}_" in cfg["hf_hub_filename"]
    channels = plain.num_features if name[-1] not in "hg" else {"h": 2560, "g": 4096}[name[-1]]
    assert features.feature_info.channels() == [channels // 8, channels // 4, channels // 2, channels]
    assert features.feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.parametrize("name", ["internimage_t", "flash_internimage_s"])
def test_intern_image(name, tmp_path):
    x = torch.randn(2, 3, 64, 96)
    plain = randomise(getattr(backbones, name)(**TINY, num_classes=7), 0.1).eval()
    levels = getattr(backbones, name)(**TINY).eval()
    levels.load_state_dict(plain.state_dict(), strict=False)
    expected = levels(x)
    official = {"model": plain.state_dict()}  # the authors' checkpoint format
    torch.save(official, tmp_path / "official.pth")
    model = timm.create_model(name, num_classes=7, checkpoint_path=tmp_path / "official.pth", **TINY)
    torch.testing.assert_close(model.eval()(x), plain(x), rtol=0, atol=0)
    weights = dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict=official, num_classes=7))
    model = timm.create_model(name, **weights, **TINY).eval()
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), plain(x), rtol=0, atol=0)
    torch.testing.assert_close(model.forward_intermediates(x)[1], list(expected), rtol=0, atol=0)
    assert model.get_classifier().out_features == 7
    other = timm.create_model(name, **weights, **TINY, num_classes=3).eval()
    torch.testing.assert_close(other.forward_features(x), expected[-1], rtol=0, atol=0)
    assert other(x).shape == (2, 3)
    gray = timm.create_model(name, **weights, **TINY, in_chans=1).eval()
    torch.testing.assert_close(gray(x[:, :1]), plain(x[:, :1].repeat(1, 3, 1, 1)), atol=1e-5, rtol=1e-4)

    for indices in ((0, 1, 2, 3), (2, 0), (-3,)):
        features = timm.create_model(name, features_only=True, out_indices=indices, **weights, **TINY).eval()
        chosen = sorted(i % 4 for i in indices)
        torch.testing.assert_close(features(x), [expected[i] for i in chosen], rtol=0, atol=0)
        assert features.feature_info.channels() == [16 * 2**i for i in chosen]
        assert not any(key.startswith("model.conv_head") for key in features.state_dict())
    early = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early, [expected[1]], rtol=0, atol=0)
    for options in (dict(indices=[4]), dict(indices=5), dict(output_fmt="NLC")):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
            model.forward_intermediates(x, **options)


def test_trains_like_a_model_of_timm():
    torch.manual_seed(0)
    model = timm.create_model("internimage_t", **TINY, num_classes=3, drop_path_rate=0.2)
    assert model.levels[3].blocks[0].drop_path.drop_prob == pytest.approx(0.2)
    groups = optim.param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scale.keys() == set(names.values())
    blocks = [f"levels.{i}.blocks.{j}" for i, depth in enumerate(TINY["depths"]) for j in range(depth)]
    order = ["patch_embed.conv1", *(f"{block}.mlp.fc1" for block in blocks), "head"]
    expected = [0.5**i for i in reversed(range(len(order)))]
    assert [scale[f"{name}.weight"] for name in order] == pytest.approx(expected)
    for one, other in (("levels.1.downsample.conv", "levels.1.norm.0"), ("conv_head.0", "head")):
        assert scale[f"{one}.weight"] == scale[f"{other}.weight"]
    model.set_grad_checkpointing()
    assert all(block.with_cp for level in model.levels for block in level.blocks)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    x, target, losses = torch.randn(4, 3, 32, 64), torch.tensor([0, 1, 2, 0]), []
    for _ in range(12):
        losses.append(nn.functional.cross_entropy(model(x), target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    model.reset_classifier(0)
    assert model(x).shape == (4, model.head_hidden_size)
    with pytest.raises(ValueError, match="global_pool: expected 'avg', got 'max'"):
        model.reset_classifier(5, "max")
