"""Networks of timm, torchvision and MMDetection: converted, trained, saved, scripted or traced, exported."""

import copy

import numpy
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import dcnzoo
from dcnzoo.export import export_onnx
from dcnzoo.layers import OffsetConv2d, offset_parameter_groups
from dcnzoo.utils.torchvision_schemas import define_missing

define_missing()  # timm imports torchvision


def timm(name):
    def build():
        return pytest.importorskip("timm").create_model(name, num_classes=5)

    return build


def torchvision(name, **options):
    def build():
        return getattr(pytest.importorskip("torchvision").models, name)(num_classes=5, **options)

    return build


def mmdetection(kind, **options):
    """Return a function that builds a detector's network, from a picture to the maps of its head."""

    def build():
        pytest.importorskip("mmdet")
        from mmdet.registry import MODELS

        import dcnzoo.models  # noqa: F401

        pyramid = dict(type="FPN", in_channels=[64, 128, 256, 512], out_channels=32, num_outs=5)
        config = dict(
            type="SingleStageDetector", backbone=dict(type="ResNet", depth=18), neck=pyramid,
            bbox_head=dict(type=kind, num_classes=3, in_channels=32, feat_channels=32, **options),
        )  # fmt: skip
        detector = MODELS.build(config)
        detector.init_weights()
        return Raw(detector)

    return build


class Raw(nn.Module):
    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, x):
        return tuple(tree_leaves(self.detector(x, mode="tensor")))


ANCHORS = dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=4, scales_per_octave=1)
ANCHORS["strides"] = [8, 16, 32, 64, 128]
NETWORKS = {  # (factory, pattern)
    "timm resnet18": (timm("resnet18"), "layer[34].*.conv2"),
    "timm regnetx_002": (timm("regnetx_002"), "s[34].*.conv2.conv"),
    "timm mobilenetv3": (timm("mobilenetv3_small_050"), "blocks.[34].*.conv_dw"),
    "timm convnext": (timm("convnext_atto"), "stages.[23].blocks.*.conv_dw"),
    "torchvision resnext50": (torchvision("resnext50_32x4d"), "layer4.*.conv2"),
    "torchvision shufflenet": (torchvision("shufflenet_v2_x0_5"), "stage[34].*.branch2.3"),
    "torchvision squeezenet": (torchvision("squeezenet1_1"), "features.1?.expand3x3"),
    "MMDetection RetinaNet": (mmdetection("RetinaHead", anchor_generator=ANCHORS), "*layer4.*.conv2"),
    "MMDetection FCOS": (mmdetection("FCOSHead"), "*layer[34].*.conv2"),
    "MMDetection GFL": (mmdetection("GFLHead", anchor_generator=ANCHORS), "*head.*_convs.*.conv"),
}
FAST = ("timm resnet18",)
X = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def assert_near(actual, expected):
    for one, other in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * max(1, other.abs().max().item()))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in NETWORKS]
)
def test_network(name, tmp_path):
    build, where = NETWORKS[name]
    model = build().eval()
    plain, expected = copy.deepcopy(model), model(X)
    report = dcnzoo.to_deformable(model, where, example=X)
    assert len(report.replaced) >= 2 and not report.refused
    assert_near(model(X), expected)

    optimizer = torch.optim.SGD(offset_parameter_groups(model.train(), lr=1e-2), momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        sum(leaf.square().mean() for leaf in tree_leaves(model(X))).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
    predictors = [module for module in model.modules() if isinstance(module, OffsetConv2d)]
    assert all(predictor.weight.any() for predictor in predictors)
    trained = model.eval()(X)
    report.check(model)

    torch.save(model.state_dict(), tmp_path / "trained.pth")
    other = build().eval()
    dcnzoo.to_deformable(other, where)
    other.load_state_dict(torch.load(tmp_path / "trained.pth"))
    assert_near(other(X), trained)

    try:
        torch.jit.script(plain)
    except Exception:  # TorchScript does not support the plain network either
        program = torch.jit.trace(model, X, check_trace=False)
    else:
        program = torch.jit.script(model)
    assert_near(program(X), trained)

    export_onnx(model, (X,), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: numpy.asarray(X)})
    assert_near([torch.from_numpy(output) for output in outputs], trained)
