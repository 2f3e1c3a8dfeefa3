"""The package DCNv2 and its forks, called as in CenterTrack, FairMOT and FaPN; D3Dnet."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from dcnzoo.ops import reference

from .programs import compare, random


@pytest.mark.parametrize("module", ["_ext", "dcn_fork._ext", "network.DCNv2._ext"])
def test_dcn_v2(provide, package, module):
    *folders, _ = module.split(".")
    if folders:
        package(".".join([*folders, "dcn_v2"]))
    provide("_ext")
    backend = importlib.import_module(module)
    sides, numbers = ((2, 1), (1, 0), (1, 2)), (3, 2, 2, 1, 1, 0, 1, 2, 2)

    def backward(grad_output, input, offset, mask, weight, bias):
        return backend.dcn_v2_backward(input, weight, bias, offset, mask, grad_output, *numbers)

    for dtype in (torch.float64, torch.float32):
        compare(
            lambda i, o, m, w, b: backend.dcn_v2_forward(i, w, b, o, m, *numbers),
            lambda i, o, m, w, b: reference.deform_conv(i, w, o, m, b, *sides, 1),
            *(random(3, 8, 9, 8), random(3, 24, 5, 6), random(3, 12, 5, 6), random(4, 8, 3, 2), random(4)),
            dtype=dtype,
            backward=backward,
        )


FAIRMOT = "from dcn_v2 import DCN"
CENTERTRACK = "try:\n    from .DCNv2.dcn_v2 import DCN\nexcept:\n    DCN = None"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("models.networks.pose_dla_dcn", FAIRMOT),
        ("model.networks.dla", CENTERTRACK),
        ("model.networks.dla", CENTERTRACK + "# with the empty folder of the git submodule"),
    ],
)
def test_networks_on_dcn_v2(provide, package, tmp_path, module, text):
    package(module, text)
    if "empty folder" in text:
        (tmp_path / "model/networks/DCNv2").mkdir()
    provide("dcn_v2")
    network = importlib.import_module(module)
    layer = network.DCN(4, 6, (3, 3), stride=1, padding=1, dilation=1, deformable_groups=1).double()
    shapes = {"weight": (6, 4, 3, 3), "bias": (6,)}
    shapes |= {"conv_offset_mask.weight": (27, 4, 3, 3), "conv_offset_mask.bias": (27,)}
    weights = {name: random(*shape) / 4 for name, shape in shapes.items()}
    layer.load_state_dict(weights)

    def expected(x):
        names = ("conv_offset_mask.weight", "conv_offset_mask.bias")
        first, second, mask = F.conv2d(x, *(weights[name] for name in names), padding=1).chunk(3, 1)
        offset = torch.cat([first, second], 1)
        one = (1, 1)
        tensors = (x, weights["weight"], offset, mask.sigmoid(), weights["bias"])
        return reference.deform_conv(*tensors, one, one, one, 1)

    compare(layer, expected, random(2, 4, 7, 5))


def test_the_prediction_by_its_original_name(provide):
    """YOLACT++ sets its weights to zero; the state dict has one name for it."""
    provide("dcn_v2")
    layer = importlib.import_module("dcn_v2").DCN(4, 6, 3, 1, 1)
    assert layer.conv_offset_mask is layer.conv_offset
    assert [name for name in layer.state_dict() if "offset" in name] == [
        "conv_offset.weight",
        "conv_offset.bias",
    ]


def test_offsets_from_other_features(provide):
    """EDVR and FaPN: ``extra_offset_mask``."""
    provide("dcn_v2")
    arguments = (4, 6, 3), dict(stride=1, padding=1, dilation=1, deformable_groups=2)
    dcn_v2 = importlib.import_module("dcn_v2")
    layer = dcn_v2.DCN(*arguments[0], **arguments[1], extra_offset_mask=True).double()
    torch.nn.init.normal_(layer.conv_offset.weight)
    given = dcn_v2.DCNv2(*arguments[0], **arguments[1]).double()
    given.load_state_dict({name: layer.state_dict()[name] for name in ("weight", "bias")})

    def expected(x, features):
        prediction = F.conv2d(features, layer.conv_offset.weight, padding=1)
        return given(x, prediction[:, :36], prediction[:, 36:].sigmoid())

    compare(lambda x, features: layer([x, features], None), expected, *(random(2, 4, 7, 5) for _ in range(2)))


def test_other_packages_keep_their_missing_ext(provide, package):
    package("network.layers")
    provide("_ext")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("network._ext")


def test_deform_conv_of_d3dnet(provide):
    provide("D3D")
    compiled = importlib.import_module("D3D")
    sides = ((2, 1, 1), (1, 0, 1), (1, 2, 1))
    numbers = (2, 1, 3, *(number for side in sides for number in side), 2, 2, 64)

    def backward(grad_output, input, offset, weight, bias):
        return compiled.deform_conv_backward(input, weight, bias, offset, grad_output, *numbers)

    compare(
        lambda i, o, w, b: compiled.deform_conv_forward(i, w, b, o, *numbers),
        lambda i, o, w, b: reference.deform_conv(i, w, o, None, b, *sides, 2),
        *(random(2, 4, 5, 4, 6), random(2, 2 * 3 * 6, 3, 4, 6), random(6, 2, 2, 1, 3), random(6)),
        backward=backward,
    )
