"""``pretrained=FILE``: what timm reads for the ViT, and the weights of a trained adapter."""

import re

import numpy as np
import pytest
import torch

import dcnzoo.models  # noqa: F401  timm imports torchvision, whose operators may have to be defined
from dcnzoo.backbones import ViTAdapter
from tests.helpers.modules import randomise as disturb

timm = pytest.importorskip("timm", reason="timm is not installed: make setup installs it")

TINY = dict(embed_dim=24, depth=4, num_heads=3)
SMALL = dict(conv_inplane=4, deform_num_heads=3)
VITS = [  # of the docs' families
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "beitv2_base_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_tiny_patch16_dinov3_qkvb",
]


def adapter(name, **options):
    if "beit" in name:
        options |= dict(window=3, pad_input=True)
    torch.manual_seed(1)
    return ViTAdapter(dict(model_name=name, **TINY), **SMALL, **options)


@pytest.fixture
def write(tmp_path):
    def write(state):
        torch.save(state, tmp_path / "weights.pth")
        return str(tmp_path / "weights.pth")

    return write


def require_weights_of(network, state):
    """Check that the network has the ViT's values, except for parameters of another shape."""
    own = network.state_dict()
    names = [name for name in own.keys() & state.keys() if own[name].shape == state[name].shape]
    assert len(names) > 40
    assert all(torch.equal(own[name], state[name]) for name in names)


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("key", [None, "model"])
def test_files_with_a_classifier(write, name, key):
    state = timm.create_model(name, **TINY, num_classes=10).state_dict()
    assert "head.weight" in state
    require_weights_of(adapter(name, pretrained=write({key: state} if key else state)), state)


def dinov2(state):
    """Return a file of DINOv2: it has a token for masked patches, and no classifier."""
    return {**state, "mask_token": torch.zeros(1, 24)}


def mae(state):
    """Return a file of facebookresearch/mae, which contains the decoder."""
    decoder = {f"decoder_{name}": value for name, value in state.items() if name.startswith("blocks.1")}
    decoder |= {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 24)}
    return {"model": state | decoder | {"decoder_pos_embed": torch.zeros(1, 197, 8)}}


def meta(state):
    """Return a file with the names of facebookresearch/dinov3, in which the keys' bias is zero."""
    official = {"mask_token": torch.zeros(1, 24), "rope_embed.periods": torch.ones(2)}
    for name, value in state.items():
        if name.endswith("q_bias"):
            bias = [value, torch.zeros(24), state[name.replace("q_bias", "v_bias")]]
            official[name.replace("q_bias", "qkv.bias")] = torch.cat(bias)
            official[name.replace("q_bias", "qkv.bias_mask")] = torch.ones(72)
        elif not name.endswith("v_bias"):
            name = name.replace("reg_token", "storage_tokens")
            official[re.sub(r"gamma_(\d)", r"ls\1.gamma", name)] = value
    return official


@pytest.mark.parametrize(
    ("name", "official"),
    [("vit_small_patch14_dinov2", dinov2), (VITS[0], mae), ("vit_tiny_patch16_dinov3_qkvb", meta)],
    ids=["DINOv2", "MAE", "DINOv3"],
)
def test_official_layouts(write, name, official):
    state = disturb(timm.create_model(name, **TINY, num_classes=0)).state_dict()
    options = dict(prefix_tokens=True, final_norm=True) if official is meta else {}
    require_weights_of(adapter(name, pretrained=write(official(dict(state))), **options), state)


def test_official_layout_of_augreg(tmp_path):
    """In an .npz of google-research/vision_transformer, matrices are transposed and heads have an axis."""
    state = disturb(timm.create_model(VITS[0], **TINY, num_classes=0)).state_dict()
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for i in range(TINY["depth"]):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for parts, place in (("weight", "kernel"), ("bias", "bias")):
            values = state[f"{ours}attn.qkv.{parts}"].chunk(3)
            for name, value in zip(("query", "key", "value"), values, strict=True):
                arrays[f"{attention}{name}/{place}"] = value.t().unflatten(-1, (3, 8))
            for number in (0, 1):
                value = state[f"{ours}mlp.fc{number + 1}.{parts}"]
                arrays[f"{theirs}MlpBlock_3/Dense_{number}/{place}"] = value.t()
        arrays[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].t().unflatten(0, (3, 8))
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for number, name in ((0, "norm1"), (2, "norm2")):
            arrays[f"{theirs}LayerNorm_{number}/scale"] = state[f"{ours}{name}.weight"]
            arrays[f"{theirs}LayerNorm_{number}/bias"] = state[f"{ours}{name}.bias"]
    np.savez(tmp_path / "vit.npz", **{name: value.numpy() for name, value in arrays.items()})
    require_weights_of(adapter(VITS[0], pretrained=str(tmp_path / "vit.npz")), state)


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_weights_of_a_trained_adapter(write, name, prefix):
    """All parameters are loaded, also those of the adapter."""
    trained = adapter(name)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.normal_()
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    if prefix:
        state["neck.weight"] = torch.zeros(1)
    other = adapter(name, pretrained=write({"state_dict": state} if prefix else state))
    assert other.state_dict().keys() == trained.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in trained.state_dict().items())


@pytest.mark.parametrize("kind", [ViTAdapter, None], ids=["adapter", "ViT"])
def test_weights_of_another_vit(write, kind):
    """The error is one line, which names the first parameters with both shapes."""
    vit = dict(model_name=VITS[0], embed_dim=48, depth=4, num_heads=3)
    state = (kind(vit, **SMALL) if kind else timm.create_model(**vit)).state_dict()
    with pytest.raises(ValueError, match=r"expected a file .*size mismatch for \w+_\w+: .*48.* …$") as error:
        adapter(VITS[0], pretrained=write(state))
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_weights_of_an_adapter_with_other_settings(write):
    state = adapter(VITS[0]).state_dict()
    with pytest.raises(ValueError, match=r"Unexpected key.*extra_extractors"):
        adapter(VITS[0], pretrained=write(state), use_extra_extractor=False)


def test_what_the_adapter_uses_must_be_there(write):
    state = timm.create_model(VITS[0], **TINY).state_dict()
    del state["norm.weight"]
    adapter(VITS[0], pretrained=write(state))
    with pytest.raises(ValueError, match=r"pretrained: expected weights with norm.weight"):
        adapter(VITS[0], pretrained=write(state), final_norm=True)
    del state["blocks.1.attn.qkv.weight"]
    with pytest.raises(ValueError, match=r"pretrained: expected weights with blocks.1.attn.qkv.weight"):
        adapter(VITS[0], pretrained=write(state))


def test_layer_scale_of_a_file(write):
    """A file's layer scale is loaded; a ViT without it refuses the file."""
    scaled = dict(model_name=VITS[0], **TINY, init_values=1e-5)
    state = timm.create_model(**(scaled | dict(init_values=0.7))).state_dict()
    assert torch.equal(state["blocks.1.ls2.gamma"], torch.full([24], 0.7))
    network = ViTAdapter(scaled, **SMALL, pretrained=write(state))
    require_weights_of(network, state)
    with pytest.raises(ValueError, match=r"pretrained: expected .* without blocks.0.ls1.gamma.*, got .*pth"):
        adapter(VITS[0], pretrained=write(state))
    without = {name: value for name, value in state.items() if ".ls" not in name}
    network = ViTAdapter(scaled, **SMALL, pretrained=write(without))
    assert torch.equal(network.blocks[1].ls2.gamma, torch.full([24], 1e-5))
    require_weights_of(network, without)


def test_weights_of_a_deeper_vit(write):
    state = timm.create_model(VITS[0], **(TINY | dict(depth=5))).state_dict()
    with pytest.raises(ValueError, match=r"pretrained: expected .* without blocks.4.norm1.weight"):
        adapter(VITS[0], pretrained=write(state))


def test_a_plain_adapter_lists_what_a_beits_weights_have_in_addition():
    state = adapter("beitv2_base_patch16_224").state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*relative_position_bias_table"):
        adapter(VITS[0]).load_state_dict(state)


def test_patches_of_another_size_are_one_line(write):
    file = write(timm.create_model(VITS[0], **TINY).state_dict())
    with pytest.warns(UserWarning, match=r"pretrained: .*: patches of 16 × 16 are resized to 14 × 14"):
        adapter("vit_small_patch14_dinov2", pretrained=file)


def test_offline_names_the_address(monkeypatch):
    def offline(**_):
        raise OSError("no network")

    network = adapter(VITS[-1])
    network.vit_options = {"model_name": "vit_small_patch16_dinov3_qkvb.lvd1689m"}
    monkeypatch.setattr(timm, "create_model", offline)
    address = r"huggingface.co/timm/vit_small_patch16_dinov3_qkvb.lvd1689m.*pretrained=FILE"
    with pytest.raises(ValueError, match=address):
        network.load_pretrained()
