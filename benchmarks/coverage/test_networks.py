"""Networks of other packages with deformable layers: operations that users apply to them.

Each network is small, with random weights. An operation is *wrong* if its result differs, and a *crash* if it
raises an error. Where it fails for the plain network too, it is the *host*'s.
"""

import copy
import io
import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo
from dcnzoo import layers
from dcnzoo.layers.packed import _Pack


@dataclass
class Network:
    """A network of a package, and where to convert it."""

    package: str
    build: Callable[[], nn.Module]
    where: Any
    size: tuple[int, ...] = (2, 3, 64, 64)
    options: dict | None = None


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision

        builder = torchvision.models.video if name.startswith("r3d") else torchvision.models
        return getattr(builder, name)(num_classes=5, **options)

    return build


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=5)

    return build


def _smp(name: str, encoder: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        return getattr(smp, name)(encoder, encoder_weights=None, classes=2)

    return build


def _monai(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from monai.networks import nets

        return getattr(nets, name)(**options)

    return build


def _nnunet() -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    options = dict(conv_op=nn.Conv3d, kernel_sizes=3, strides=[1, 2, 2], n_conv_per_stage=1, num_classes=2)
    options |= dict(n_conv_per_stage_decoder=1, conv_bias=True, norm_op=nn.InstanceNorm3d)
    options |= dict(norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True})
    return PlainConvUNet(1, 3, [4, 8, 8], **options)


def _yolo(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from ultralytics.nn.tasks import DetectionModel

        return DetectionModel(f"{name}.yaml", nc=3, verbose=False)

    return build


def _transformers(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(num_labels=5, **options)
        return getattr(transformers, f"{name}ForImageClassification")(config)

    return build


DEPTHWISE = {"prediction": "separable"}
VOLUME = (2, 1, 16, 16, 16)
ONE_CHANNEL = dict(spatial_dims=3, in_channels=1, out_channels=2)
SMP = "segmentation_models_pytorch"
NETWORKS = {
    "ResNet-18": Network("torchvision", _torchvision("resnet18"), "layer[3-4].*.conv2"),
    "MobileNetV3": Network(
        "torchvision", _torchvision("mobilenet_v3_small"), "features.1[01].block.1.0", options=DEPTHWISE
    ),
    "ConvNeXt-T": Network(
        "torchvision", _torchvision("convnext_tiny"), "features.7.*.block.0", options=DEPTHWISE
    ),
    "R3D-18": Network("torchvision", _torchvision("r3d_18"), "layer4.*.conv2.0", (2, 3, 8, 32, 32)),
    "RegNetX": Network("timm", _timm("regnetx_002"), "s4.*.conv2.conv"),
    "VGG-11 (timm)": Network("timm", _timm("vgg11_bn"), "features.2[25]"),
    "RepVGG-A0": Network("timm", _timm("repvgg_a0"), "stages.3.*conv_kxk.conv"),
    "MobileOne-S0": Network("timm", _timm("mobileone_s0"), "stages.3.*conv_kxk.0.conv"),
    "EfficientNet-B0": Network("timm", _timm("efficientnet_b0"), "blocks.5.[23].conv_dw", options=DEPTHWISE),
    "ConvNeXt-Atto": Network("timm", _timm("convnext_atto"), "stages.3.*.conv_dw", options=DEPTHWISE),
    "U-Net (smp)": Network(SMP, _smp("Unet", "resnet18"), "decoder.blocks.[01].conv*.0"),
    "FPN (smp)": Network(SMP, _smp("FPN", "resnet18"), "encoder.layer4.*.conv2"),
    "U-Net (MONAI)": Network(
        "monai",
        _monai("UNet", spatial_dims=2, in_channels=3, out_channels=2, channels=(8, 16, 32), strides=(2, 2)),
        "model.1.submodule.*.conv",
    ),
    "SegResNet 3-D": Network(
        "monai",
        _monai(
            "SegResNet",
            spatial_dims=3,
            init_filters=8,
            in_channels=1,
            out_channels=2,
            blocks_down=(1, 1, 1),
            blocks_up=(1, 1),
        ),
        "down_layers.2.*.conv",
        VOLUME,
    ),
    "BasicUNet 3-D": Network(
        "monai",
        _monai("BasicUNet", **ONE_CHANNEL, features=(4, 4, 8, 8, 8, 4)),
        "down_[34]*.conv",
        (2, 1, 32, 32, 32),
    ),
    "nnU-Net 3-D": Network("dynamic_network_architectures", _nnunet, "encoder.stages.2.*.conv", VOLUME),
    "YOLOv8n": Network("ultralytics", _yolo("yolov8n"), "model.[68].m.*.cv2.conv"),
    "YOLO11n": Network("ultralytics", _yolo("yolo11n"), "model.[68].m.*.m.*.cv2.conv"),
    "ResNet (Transformers)": Network(
        "transformers",
        _transformers("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
        "*stages.1.*layer.*.convolution",
    ),
    "ConvNeXt (Transformers)": Network(
        "transformers",
        _transformers("ConvNext", hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1]),
        "*stages.[23].layers.*.dwconv",
        options=DEPTHWISE,
    ),
}


def tensors(output: Any) -> list[Tensor]:
    """All floating-point tensors of an output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if isinstance(output, dict) else output
    return [t for value in values for t in tensors(value)] if isinstance(output, dict | list | tuple) else []


def loss_of(output: Any) -> Tensor:
    return torch.stack([t.float().square().mean() for t in tensors(output)]).sum()


def randomise_offsets(pack: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    nn.init.normal_(pack.conv_offset.weight)
    offset, _ = pack.predict(inputs[0])
    pack.conv_offset.weight.mul_(0.5 / offset.std())


@torch.no_grad()
def normalise(model: nn.Module, x: Tensor) -> None:
    """Set the statistics of batch norms to those of an input: random networks would give 10¹⁴, or zero."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine:  # timm's last ones in a block start at zero, which stops gradients
            norm.weight.uniform_(0.8, 1.2)
    model.train()
    model(x)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_var.clamp_(min=0.1)


class Case:
    """A converted network with random offsets, the plain one, and an input."""

    def __init__(self, network: Network) -> None:
        torch.manual_seed(0)
        self.plain = network.build().eval()
        self.x = torch.randn(network.size)
        self.where, self.options = network.where, network.options or {}
        normalise(self.plain, self.x)
        self.start = copy.deepcopy(self.plain)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.report = dcnzoo.to_deformable(self.start, self.where, **self.options)
        self.model = copy.deepcopy(self.start)
        # offsets of about half a pixel, whatever the size of the layer's input
        handles = [pack.register_forward_pre_hook(randomise_offsets) for pack in self.packs(self.model)]
        with torch.no_grad():
            self.model(self.x)
        for handle in handles:
            handle.remove()

    @staticmethod
    def packs(model: nn.Module) -> list[Any]:
        return [m for m in model.modules() if isinstance(m, _Pack)]

    def fresh(self, plain: bool) -> nn.Module:
        return copy.deepcopy(self.plain if plain else self.model)


def same(output: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Assert that outputs are equal, relative to the largest value."""
    for mine, true in zip(tensors(output), tensors(expected), strict=True):
        scale = true.abs().max().double().item() + 1e-6
        assert torch.isfinite(mine).all() or not torch.isfinite(true).all(), "not finite"
        difference = (mine.double() - true.double()).abs().max().item()
        assert difference <= tolerance * scale, f"differs by {difference / scale:.2g}"


def trained(model: nn.Module, x: Tensor, steps: int = 2, groups: Any = None) -> list[float]:
    """Train, and assert that every deformable layer learns."""
    torch.manual_seed(0)  # of dropout
    model.train()
    optimizer = torch.optim.SGD(groups or model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model(x))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for pack in Case.packs(model):
        assert pack.weight.grad is not None and pack.conv_offset.weight.grad is not None, "no gradient"
        assert torch.isfinite(pack.conv_offset.weight.grad).all(), "gradients not finite"
    return losses


def last_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


OPERATIONS: dict[str, Callable[[Case, bool], None]] = {}


def operation(function: Callable[[Case, bool], None]) -> Callable[[Case, bool], None]:
    OPERATIONS[function.__name__] = function
    return function


@operation
def output_unchanged(case, plain):
    with torch.no_grad():
        same((case.plain if plain else case.start)(case.x), case.plain(case.x), 1e-3)


@operation
def train(case, plain):
    trained(case.fresh(plain), case.x)


@operation
def train_channels_last(case, plain):
    model = case.fresh(plain).to(memory_format=last_format(case.x))
    losses = trained(model, case.x.contiguous(memory_format=last_format(case.x)))
    reference = trained(case.fresh(plain), case.x)
    assert abs(losses[0] - reference[0]) <= 1e-2 * abs(reference[0]) + 1e-6, "loss differs"


@operation
def in_place_activations(case, plain):
    model = case.fresh(plain).to(memory_format=last_format(case.x))
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
    trained(model, case.x.contiguous(memory_format=last_format(case.x)))


@operation
def channels_last(case, plain):
    model = case.fresh(plain)
    with torch.no_grad():
        expected = model(case.x)
        model.to(memory_format=last_format(case.x))
        same(model(case.x.contiguous(memory_format=last_format(case.x))), expected, 1e-3)


@operation
def autocast(case, plain):
    model = case.fresh(plain)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(case.x)
    same(output, case.fresh(plain)(case.x), 0.3)


@operation
def autocast_training(case, plain):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained(case.fresh(plain), case.x, 1)


@operation
def float64(case, plain):
    model = case.fresh(plain)
    with torch.no_grad():
        same(model.double()(case.x.double()), case.fresh(plain)(case.x), 1e-3)


@operation
def bfloat16_weights(case, plain):
    with torch.no_grad():
        output = case.fresh(plain).bfloat16()(case.x.bfloat16())
    assert all(torch.isfinite(t).all() for t in tensors(output)), "not finite"


@operation
def deepcopy(case, plain):
    same(copy.deepcopy(case.fresh(plain))(case.x), case.fresh(plain)(case.x))


@operation
def pickled(case, plain):
    same(pickle.loads(pickle.dumps(case.fresh(plain)))(case.x), case.fresh(plain)(case.x))


@operation
def saved_whole(case, plain):
    file = io.BytesIO()
    torch.save(case.fresh(plain), file)
    file.seek(0)
    same(torch.load(file, weights_only=False)(case.x), case.fresh(plain)(case.x))


@operation
def state_dict(case, plain):
    model = copy.deepcopy(case.plain if plain else case.start)
    model.load_state_dict(case.fresh(plain).state_dict())
    same(model(case.x), case.fresh(plain)(case.x))


@operation
def plain_checkpoint(case, plain):
    model = copy.deepcopy(case.plain if plain else case.start)
    missing, unexpected = model.load_state_dict(case.plain.state_dict(), strict=False)
    assert not unexpected and all(".conv_offset." in n or ".offset_features." in n for n in missing)
    same(model(case.x), case.plain(case.x), 1e-3)


@operation
def safetensors(case, plain):
    from safetensors.torch import load, save

    model = copy.deepcopy(case.plain if plain else case.start)
    state = {name: t.contiguous().clone() for name, t in case.fresh(plain).state_dict().items()}
    model.load_state_dict(load(save(state)))
    same(model(case.x), case.fresh(plain)(case.x))


@operation
def averaged(case, plain):
    model = AveragedModel(case.fresh(plain))
    model.update_parameters(case.fresh(plain))
    same(model.eval()(case.x), case.fresh(plain)(case.x))


@operation
def jit_trace(case, plain):
    model = case.fresh(plain)
    traced = torch.jit.trace(model, case.x, strict=False, check_trace=False)
    same(traced(case.x), model(case.x))


@operation
def jit_script(case, plain):
    model = case.fresh(plain)
    same(torch.jit.script(model)(case.x), model(case.x))


@operation
def fx_trace(case, plain):
    model = case.fresh(plain)
    same(torch.fx.symbolic_trace(model)(case.x), model(case.x))


@operation
def export(case, plain):
    model = case.fresh(plain)
    expected = case.fresh(plain)(
        case.x
    )  # of a copy: the export leaves fake tensors in YOLO's cache of anchors
    same(torch.export.export(model, (case.x,)).module()(case.x), expected)


@operation
def compiled(case, plain):
    model = case.fresh(plain)
    torch._dynamo.reset()
    same(torch.compile(model, backend="aot_eager")(case.x), model(case.x))


@operation
def gradient_checkpoint(case, plain):
    model = case.fresh(plain)
    x = case.x.clone().requires_grad_()
    loss_of(checkpoint(model, x, use_reentrant=False)).backward()
    other = case.x.clone().requires_grad_()
    loss_of(model(other)).backward()
    same(x.grad, other.grad)


@operation
def other_size(case, plain):
    model = case.fresh(plain)
    x = torch.nn.functional.pad(case.x, [0, 32] * (case.x.dim() - 2))
    with torch.no_grad():
        assert all(torch.isfinite(t).all() for t in tensors(model(x))), "not finite"


@operation
def one_image(case, plain):
    model = case.fresh(plain)
    with torch.inference_mode():
        same(
            [t[:1] for t in tensors(model(case.x)) if len(t) == 2],
            [t for t in tensors(model(case.x[:1])) if len(t) == 1],
            1e-3,
        )


@operation
def functional_gradients(case, plain):
    model = case.fresh(plain)
    parameters = dict(model.named_parameters())
    call = torch.func.grad(lambda p: loss_of(torch.func.functional_call(model, p, (case.x,))))
    assert all(torch.isfinite(t).all() for t in call(parameters).values()), "not finite"


@operation
def pruned(case, plain):
    model = case.fresh(plain)
    for module in case.packs(model):
        prune.l1_unstructured(module, "weight", 0.5)
    loss_of(model(case.x)).backward()


@operation
def flop_counter(case, plain):
    assert flops(case.plain if plain else case.start, case.x) >= flops(case.plain, case.x)


def flops(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        loss_of(model(x)).backward()
    return counter.get_total_flops()


@operation
def thop_counter(case, plain):
    thop = pytest.importorskip("thop")
    counts = [thop.profile(copy.deepcopy(m), (case.x,), verbose=False)[0] for m in (case.start, case.plain)]
    assert counts[0] >= counts[1]


@operation
def fvcore_counter(case, plain):
    nn_of_fvcore = pytest.importorskip("fvcore.nn")
    counts = []
    for model in (case.plain if plain else case.start, case.plain):
        analysis = nn_of_fvcore.FlopCountAnalysis(copy.deepcopy(model), case.x)
        counts.append(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())
    assert counts[0] >= counts[1]


@operation
def initialised_again(case, plain):
    model = copy.deepcopy(case.plain if plain else case.start)

    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)

    model.apply(initialise)
    assert not any(pack.conv_offset.weight.any() for pack in case.packs(model)), "random offsets"


@operation
def fused_by_the_host(case, plain):
    model = case.fresh(plain)
    expected = model(case.x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hasattr(model, "fuse"):
            model = model.fuse(verbose=False)
        elif "timm" in type(model).__module__:
            from timm.utils import reparameterize_model

            model = reparameterize_model(model)
    same(model(case.x), expected, 1e-3)
    assert plain or len(case.packs(model)) == len(case.packs(case.model)), "layers are gone"


@operation
def converted_back(case, plain):
    model = copy.deepcopy(case.start)
    dcnzoo.from_deformable(model)
    assert not case.packs(model)
    same(model(case.x), case.plain(case.x), 1e-3)


@operation
def statistics(case, plain):
    model = case.fresh(plain)
    layers.track_offsets(model)
    model(case.x)
    assert len(layers.offset_statistics(model)) == len(case.packs(model))


@operation
def parameter_groups(case, plain):
    model = case.fresh(plain)
    trained(model, case.x, 1, layers.offset_parameter_groups(model, lr=1e-3))


@operation
def only_offsets_train(case, plain):
    model = case.fresh(plain)
    model.requires_grad_(False)
    for pack in case.packs(model):
        pack.conv_offset.requires_grad_()
    if not plain:
        loss_of(model(case.x)).backward()
        assert all(pack.conv_offset.weight.grad.any() for pack in case.packs(model)), "no gradient"


def outcome(function: Callable[[Case, bool], None], case: Case) -> str:
    """*ok*, *skipped*, *wrong: …*, *crash: …*, or *host* if the plain network fails too."""
    first = attempt(function, case, plain=False)
    if not first.startswith(("wrong", "crash")):
        return first
    return first if attempt(function, case, plain=True) == "ok" else "host"


def attempt(function: Callable[[Case, bool], None], case: Case, plain: bool) -> str:
    try:
        function(case, plain)
    except pytest.skip.Exception:
        return "skipped"
    except AssertionError as error:
        return f"wrong: {str(error).splitlines()[0] if str(error) else 'differs'}"
    except Exception as error:
        return f"crash: {type(error).__name__}: {' '.join(str(error).split())[:150]}"
    return "ok"


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, record_property):
    network = NETWORKS[name]
    pytest.importorskip(network.package, exc_type=ImportError)
    case = Case(network)
    results = {key: outcome(function, case) for key, function in OPERATIONS.items()}
    record_property("family", name)
    record_property("config", network.package)
    record_property("operations", json.dumps(results))
    failed = {key: text for key, text in results.items() if text.startswith(("wrong", "crash"))}
    record_property("result", "; ".join(f"{key}: {text}" for key, text in failed.items()) or "ok")
    assert not failed, failed
