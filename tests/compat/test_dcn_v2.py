"""The package DCNv2 and its forks, called as in CenterTrack, FairMOT and FaPN."""

import importlib
import itertools

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


def psroi_pooling_by_loops(input, rois, trans, no_trans, scale, channels, group, bins, part, samples, std):
    """Dai et al. 2017, section 2.2, one sample at a time."""
    classes = 1 if no_trans else trans.shape[1] // 2
    height, width = input.shape[2:]
    values = []
    for r, c, i, j in itertools.product(range(len(rois)), range(channels), range(bins), range(bins)):
        image, x1, y1, x2, y2 = rois[r].round().tolist()
        left, top = x1 * scale - 0.5, y1 * scale - 0.5
        wide, high = (x2 + 1) * scale - 0.5 - left, (y2 + 1) * scale - 0.5 - top
        shift = random(2) * 0 if no_trans else trans[r].unflatten(0, (classes, 2))[c * classes // channels]
        if not no_trans:
            shift = shift[:, i * part // bins, j * part // bins] * std
        plane = input[int(image), (c * group + i * group // bins) * group + j * group // bins]
        inside = []
        for k, m in itertools.product(range(samples), range(samples)):
            y = top + (i + k / samples) * high / bins + shift[1] * high
            x = left + (j + m / samples) * wide / bins + shift[0] * wide
            if -0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5:
                y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
                rows = (1 - (y - torch.arange(height).double()).abs()).clamp(min=0)
                columns = (1 - (x - torch.arange(width).double()).abs()).clamp(min=0)
                inside.append(rows @ plane @ columns)
        values.append(sum(inside) / len(inside) if inside else plane.sum() * 0)
    return torch.stack(values).reshape(len(rois), channels, bins, bins)


@pytest.mark.parametrize("no_trans", [0, 1])
def test_psroi_pooling(provide, no_trans):
    provide("_ext")
    backend = importlib.import_module("_ext")

    # the last box is outside the map; one is partly outside
    rois = [[1, 2.3, 1, 9, 12.6], [0, -6, -4, 5, 3], [1, 8, 3, 8, 3], [0, 40, 40, 50, 44]]
    rois = torch.tensor(rois, dtype=torch.float64)
    options = (no_trans, 0.5, 4, 2, 3, 2, 2, 0.3)  # 4 channels, 2² groups, 3² bins, 2² parts, 2² samples
    trans = random(0) if no_trans else random(4, 2 * 2, 2, 2)
    input = random(2, 16, 7, 6)
    leaves = (input, trans)[: 2 - no_trans]

    def pooled(input, trans=trans):
        return backend.dcn_v2_psroi_pooling_forward(input, rois, trans, *options)[0]

    def backward(grad_output, input, trans=trans):
        _, count = backend.dcn_v2_psroi_pooling_forward(input, rois, trans, *options)
        tensors = (grad_output, input, rois, trans, count)
        return backend.dcn_v2_psroi_pooling_backward(*tensors, *options)[: len(leaves)]

    compare(
        pooled,
        lambda input, trans=trans: psroi_pooling_by_loops(input, rois, trans, *options),
        *leaves,
        backward=backward,
    )


@pytest.mark.parametrize("no_trans", [False, True])
def test_layers_of_psroi_pooling(provide, no_trans):
    provide("dcn_v2")
    dcn_v2 = importlib.import_module("dcn_v2")
    rois = torch.tensor([[1, 2.3, 1, 9, 12.6], [0, -6, -4, 5, 3]], dtype=torch.float64)
    input, options = random(2, 16, 7, 6), (0.5, 3, 4, no_trans, 2, None, 2, 0.3)
    layer = dcn_v2.DCNPooling(*options, deform_fc_dim=8).double()
    names = () if no_trans else ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
    assert list(layer.state_dict()) == [f"offset_mask_fc.{name}" for name in names]
    numbers = (0.5, 4, 2, 3, 3, 2, 0.3)  # a part for each bin
    expected = psroi_pooling_by_loops(input, rois, random(2, 2, 3, 3) * 0, no_trans, *numbers)
    torch.testing.assert_close(layer(input, rois), expected * (1 if no_trans else 0.5))
    if no_trans:
        return
    torch.nn.init.normal_(layer.offset_mask_fc[4].weight)
    regular = psroi_pooling_by_loops(input, rois, random(2, 2, 3, 3), True, *numbers)
    offset, mask = layer.offset_mask_fc(regular.flatten(1)).view(2, 3, 3, 3).split([2, 1], 1)
    expected = psroi_pooling_by_loops(input, rois, offset, False, *numbers) * mask.sigmoid()
    torch.testing.assert_close(layer(input, rois), expected)
    pooling = dcn_v2.DCNv2Pooling(*options)
    torch.testing.assert_close(pooling(input, rois, offset) * mask.sigmoid(), expected)


def test_other_packages_keep_their_missing_ext(provide, package):
    package("network.layers")
    provide("_ext")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("network._ext")
