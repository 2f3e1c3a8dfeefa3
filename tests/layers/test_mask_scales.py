"""State dicts of layers whose masks have different scales give a right output, or torch names a key.

The scale is the factor of the mask's sigmoid: 2 for layers of ``to_deformable`` and for tvdcn's, 1 for mmcv's
and DCNv2's.
"""

import collections

import mmcv.ops
import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import nn

import dcnzoo
from dcnzoo import layers
from dcnzoo.compat import tvdcn
from dcnzoo.compat.mmcv import ModulatedDeformConv2dPack
from dcnzoo.ops.reference import deform_conv
from tests.helpers.modules import randomise

SIZES = (4, 6, 3)
SOURCES = {  # names of the predictors, scale
    "converted": (["conv_offset"], 2),
    "dcnzoo 0.2.0": (["conv_offset"], 2),
    "mmcv": (["conv_offset"], 1),
    "DCNv2": (["conv_offset_mask"], 1),
    "m_conv": (["offset_conv", "m_conv"], 1),
    "tvdcn": (["offset_generator", "mask_generator"], 2),
    "modulator_conv": (["offset_conv", "modulator_conv"], 2),
}
TARGETS = {
    "converted": lambda: convert(nn.Conv2d(*SIZES, padding=1)),
    "tvdcn": lambda: tvdcn.PackedDeformConv2d(*SIZES, padding=1, modulated=True, generator_bias=True),
    "DCNv2": lambda: ModulatedDeformConv2dPack(*SIZES, padding=1),
    "packed": lambda: layers.PackedDeformConv2d(*SIZES, padding=1, modulated=True),
    "mmcv's own": lambda: mmcv.ops.ModulatedDeformConv2dPack(*SIZES, padding=1),
}


def convert(convolution):
    model = nn.Sequential(convolution)
    dcnzoo.to_deformable(model, "0")
    return model[0]


def stored(source, has_metadata):
    """The state dict of a network with one layer, and the network as a function."""
    names, scale = SOURCES[source]
    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(6)
    predictor = nn.Conv2d(4, 27, 3, padding=1)
    state = collections.OrderedDict({"0.weight": weight, "0.bias": bias})
    channels = [27] if len(names) == 1 else [18, 9]
    for key, value in predictor.state_dict().items():
        state |= zip([f"0.{name}.{key}" for name in names], value.split(channels), strict=True)
    if source == "converted":
        state["0.mask_activation.scale"] = torch.tensor(2.0)
    if has_metadata:
        metadata = {"version": 2 if source == "mmcv" else 1}
        if source == "dcnzoo 0.2.0":
            metadata["mask_scale"] = 2.0
        state._metadata = collections.OrderedDict({"": {"version": 1}, "0": metadata})

    def network(x):
        offset, mask = predictor(x).split([18, 9], 1)
        mask = scale * mask.sigmoid()
        return deform_conv(x, weight, offset, mask, bias, [1, 1], [1, 1], [1, 1], 1)

    return state, network


def problem(source, has_metadata, target):
    """Return the key that torch must name, or None."""
    if target == "mmcv's own":
        expected = SOURCES[source][0] == ["conv_offset"]
        return (
            "mask_activation.scale"
            if expected and source == "converted"
            else (None if expected else "conv_offset")
        )
    is_known = has_metadata or source not in ("mmcv", "dcnzoo 0.2.0")
    return None if is_known or target in ("DCNv2", "packed") else "mask_activation.scale"


CASES = [
    (source, has_metadata, target)
    for source in SOURCES
    for has_metadata in (True, False)
    for target in TARGETS
    # mmcv's class does not read the metadata, and without them, the keys are those of mmcv's
    if not (
        source == "dcnzoo 0.2.0" and (target == "mmcv's own" or (target != "converted" and not has_metadata))
    )
]


@pytest.mark.parametrize("load", ["strict", "not strict", "MMEngine", "MMEngine strict"])
@pytest.mark.parametrize(("source", "has_metadata", "target"), CASES)
def test_output_is_right_or_a_key_is_named(source, has_metadata, target, load, tmp_path, capsys):
    state, network = stored(source, has_metadata)
    model, named = nn.Sequential(TARGETS[target]()), ""
    try:
        if load.startswith("MMEngine"):
            torch.save(state, tmp_path / "layer.pth")
            load_checkpoint(model, str(tmp_path / "layer.pth"), strict=load.endswith("strict"))
            named = capsys.readouterr().out
        else:
            named = str(model.load_state_dict(state, strict=load == "strict"))
    except RuntimeError as error:
        assert "strict" in load and load != "not strict"
        named = str(error)
    if key := problem(source, has_metadata, target):
        assert f"0.{key}" in named
    else:
        x = torch.randn(1, 4, 7, 9)
        torch.testing.assert_close(model(x), network(x), atol=1e-4, rtol=1e-4)
        assert "0." not in named


@pytest.mark.parametrize("target", ["converted", "DCNv2"])
def test_a_saved_scale_is_loaded_with_the_weights(target):
    """It replaces another scale, and also loads into the layer that already has it."""
    state, network = stored("mmcv", True)
    model, x = nn.Sequential(convert(nn.Conv2d(*SIZES, padding=1))), torch.randn(1, 4, 7, 9)
    model.load_state_dict(state)
    other = nn.Sequential(TARGETS[target]())
    for _ in range(2):
        other.load_state_dict(dict(model.state_dict()))
        torch.testing.assert_close(other(x), network(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("assign", [False, True])
def test_softmax(assign):
    """A converted layer's softmax is scaled by nine. A plain one takes this over; the way back is refused."""
    model = nn.Sequential(nn.Conv2d(*SIZES, padding=1))
    dcnzoo.to_deformable(model, "0", mask_activation="softmax")
    randomise(model)
    plain = layers.PackedDeformConv2d(*SIZES, padding=1, modulated=True, mask_activation="softmax")
    other, x = nn.Sequential(plain), torch.randn(1, 4, 7, 9)
    other.load_state_dict(dict(model.state_dict()), assign=assign)
    torch.testing.assert_close(other(x), model(x))
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.mask_activation\.softmax_scale"):
        model.load_state_dict(other.state_dict())


def converted_to(kind):
    model = nn.Sequential(nn.Conv2d(*SIZES, padding=1))
    dcnzoo.to_deformable(model, "0", kind=kind)
    randomise(model)
    return model


@pytest.mark.parametrize(("saved", "target"), [("v2", "v3"), ("v3", "v2"), ("v1", "v2"), ("v3", "v1")])
def test_weights_of_another_kind_are_refused(saved, target):
    with pytest.raises(RuntimeError, match=r"mask_activation|conv_offset"):
        converted_to(target).load_state_dict(converted_to(saved).state_dict())


def test_a_plain_softmax_refuses_the_weights_of_a_sigmoid():
    plain = layers.PackedDeformConv2d(*SIZES, padding=1, modulated=True, mask_activation="softmax")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.mask_activation\.scale"):
        nn.Sequential(plain).load_state_dict(converted_to("v2").state_dict())


@pytest.mark.parametrize("saved", ["its old name", "dcnzoo 0.2.0"])
@pytest.mark.parametrize("kind", ["v2", "v3"])
def test_softmax_of_older_files(saved, kind):
    """They do not say whether a scale is that of a softmax; its value shows it."""
    model, other, x = converted_to("v3"), converted_to(kind), torch.randn(1, 4, 7, 9)
    state = other.state_dict()
    key = next(key for key in state if "mask_activation" in key)
    scale = state.pop(key)
    if saved == "dcnzoo 0.2.0":
        state._metadata["0"]["mask_scale"] = scale.item()
    else:
        state["0.mask_activation.scale"] = scale
    if kind == "v3":
        model.load_state_dict(state)
        torch.testing.assert_close(model(x), other(x))
    else:
        with pytest.raises(RuntimeError, match=r"Missing key.*0\.mask_activation\.softmax_scale"):
            model.load_state_dict(state)


def test_a_part_of_a_state_dict_leaves_the_scale():
    """With the plain network's weights, all missing keys are named, and the output is the plain one's."""
    plain = nn.Conv2d(*SIZES)
    converted = convert(nn.Conv2d(*SIZES))
    keys = converted.load_state_dict(plain.state_dict(), strict=False)
    assert keys.missing_keys == ["conv_offset.weight", "conv_offset.bias", "mask_activation.scale"]
    x = torch.randn(1, 4, 7, 9)
    torch.testing.assert_close(converted(x), plain(x))
    del (state := converted.state_dict())["weight"]
    assert "mask_activation.scale" in str(
        ModulatedDeformConv2dPack(*SIZES).load_state_dict(state, strict=False)
    )


def test_from_the_meta_device():
    with torch.device("meta"):
        converted = convert(nn.Conv2d(*SIZES))
    assert converted.mask_activation.scale.is_meta
    converted.to_empty(device="cpu")
    converted.mask_activation.reset_parameters()
    assert converted.mask_activation.scale == 2
    assert str(converted.mask_activation) == "MaskSigmoid(scale=2.0)"
