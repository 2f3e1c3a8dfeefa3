"""``dcnzoo.compat.transformers`` against Transformers' own functions: ``nox -s projects``."""

import importlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dcnzoo.compat import provide
from dcnzoo.compat import transformers as compat
from dcnzoo.export import export_onnx

provide("torchvision")  # whose operators do not load beside a CPU build of torch
transformers = pytest.importorskip("transformers", exc_type=ImportError)

RESNET = dict(
    **dict(model_type="resnet", embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
    **dict(layer_type="basic", out_features=["stage2", "stage3", "stage4"]),
)
COMMON = dict(encoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=9)
COMMON |= dict(backbone_config=RESNET, decoder_layers=2)
DETR = COMMON | dict(d_model=32, encoder_layers=2, decoder_attention_heads=4, encoder_n_points=2)
DETR |= dict(decoder_n_points=3)
RT_DETR = COMMON | dict(encoder_hidden_dim=16, encoder_in_channels=[12, 16, 20], d_model=16)
RT_DETR |= dict(decoder_in_channels=[16] * 3, decoder_attention_heads=2, decoder_n_points=2, num_denoising=0)
SWIN = dict(model_type="swin", embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4)
SWIN |= dict(image_size=64, out_features=["stage1", "stage2", "stage3", "stage4"])
MASK2FORMER = dict(
    **dict(backbone_config=SWIN, hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_layers=2),
    **dict(encoder_feedforward_dim=16, dim_feedforward=16, decoder_layers=3, num_attention_heads=2),
    num_queries=7,
)
# One family for each function that dcnzoo replaces; D-FINE's layers keep a reference to it. When a family is
# imported, dcnzoo itself compares the function with its own.
MODELS = {
    "deformable_detr": ("DeformableDetrForObjectDetection", DETR),
    "mask2former": ("Mask2FormerForUniversalSegmentation", MASK2FORMER),
    "rt_detr_v2": ("RTDetrV2ForObjectDetection", RT_DETR),
    "d_fine": ("DFineForObjectDetection", RT_DETR | dict(decoder_n_points=[3, 6, 2])),
}
EXPORTED = MODELS | {"deimv2": ("Deimv2ForObjectDetection", MODELS["d_fine"][1])}
FAMILIES = {
    *MODELS,
    *("deimv2", "grounding_dino", "lw_detr", "mm_grounding_dino", "omdet_turbo", "oneformer"),
    *("pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4", "rf_detr", "rt_detr"),
}


@pytest.fixture(autouse=True)
def undone():
    yield
    compat.disable()
    torch._dynamo.reset()


def build(family, **changes):
    """A model in evaluation mode. Noise on its weights moves every sampling location."""
    torch.manual_seed(0)
    name, arguments = EXPORTED[family]
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**arguments | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def images():
    return {"pixel_values": torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))}


def results(model):
    """The output tensors and the parameters' gradients, by name."""
    model.zero_grad()
    outputs = {k: v for k, v in model(**images()).items() if isinstance(v, torch.Tensor)}
    torch.manual_seed(2)
    floats = [v for v in outputs.values() if v.requires_grad and v.isfinite().all()]
    sum((v * torch.randn_like(v)).mean() for v in floats).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert any("sampling_offsets" in name and grad.any() for name, grad in gradients.items())
    return {name: v.detach() for name, v in outputs.items()}, gradients


def assert_equal(got, want, tolerance):
    for ours, theirs in zip(got, want, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(
                ours[name],
                theirs[name],
                atol=tolerance,
                rtol=tolerance,
                msg=lambda m, name=name: f"{name}: {m}",
            )


class Recorder:
    """A backend of torch.compile that records the calls in its graphs and runs them unchanged."""

    def __init__(self):
        self.calls = []

    def __call__(self, graph, example_inputs):
        self.calls += [str(node.target) for node in graph.graph.nodes]
        return graph.forward

    def count(self, name):
        return sum(name in call for call in self.calls)


@pytest.fixture
def attended(monkeypatch):
    """The list of samplings that ran on dcnzoo's kernels in eager mode."""
    calls = []
    attend = compat._attend
    monkeypatch.setattr(compat, "_attend", lambda *args: (calls.append(args), attend(*args))[1])
    return calls


@pytest.mark.parametrize("family", MODELS)
def test_family_equals_the_original(family, attended):
    """In eager mode and compiled, with gradients."""
    with compat.enabled():  # D-FINE's layers keep the function
        model = build(family)
    want = results(model)
    layers = sum(name.endswith("sampling_offsets") for name, _ in model.named_modules())
    compat.enable()
    assert family in compat.families()
    attended.clear()  # drop the calls of enable()'s own check
    assert_equal(results(model), want, 1e-5)
    assert len(attended) == layers > 0
    compat.disable()
    assert_equal(results(model), want, 0)
    assert len(attended) == layers
    recorder = Recorder()
    model.compile(backend=recorder)
    with compat.enabled():
        assert_equal(results(model), want, 1e-5)
    assert recorder.count("ms_deform_attn") > 0
    assert recorder.count("grid_sample") == 0


def test_families_are_those_that_sample():
    """Fails for a release with a new family until FAMILIES includes it."""
    models = Path(transformers.__file__).parent / "models"
    sampling = {
        path.parent.name
        for path in models.glob("*/modeling_*.py")
        if re.search(r"\bsampling_locations\b", path.read_text(encoding="utf-8"))
    }
    assert sampling == FAMILIES
    for family in FAMILIES:
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    with compat.enabled():
        assert set(compat.families()) == sampling
    assert compat.families() == []


def test_discrete_sampling_is_the_original(attended):
    model = build("rt_detr_v2", decoder_method="discrete")
    with torch.no_grad():
        want = model(**images()).pred_boxes
        compat.enable()
        attended.clear()
        got = model(**images()).pred_boxes
    assert torch.equal(got, want)
    assert not attended


@pytest.mark.parametrize(
    "family", ["deformable_detr", "mask2former", "d_fine", "deimv2"]
)  # RT-DETRv2's boxes differ
def test_onnx_files_have_gathers(family, tmp_path):
    """Whole models agree in onnxruntime and OpenVINO on a picture, without GridSample.

    OpenVINO 2026.4 compiles no file of Mask2Former, with or without dcnzoo's functions.
    """
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    picture = Image.open(Path(__file__).parents[1] / "data/color.jpg").resize((96, 64))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 64 - 2
    with compat.enabled():
        model = build(family)

    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            outputs = self.model(pixel_values=pixel_values)
            names = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
            return tuple(outputs[name] for name in names if name in outputs)

    with torch.no_grad():
        expected = Outputs()(pixels)
    path = str(tmp_path / "model.onnx")
    with compat.enabled():
        export_onnx(Outputs().eval(), (pixels,), path)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "GatherND" in operators and "GridSample" not in operators
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = pixels.numpy()
    results = {"onnxruntime": session.run(None, {session.get_inputs()[0].name: feed})}
    if family != "mask2former":
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results["OpenVINO"] = list(compiled(feed).values())
    for runtime, outputs in results.items():
        assert len(outputs) == len(expected) == 2
        got = [torch.from_numpy(output) for output in outputs]
        # queries are ordered by scores, of which some of a random model are equal up to rounding
        rows, wanted = (torch.cat([output[0].flatten(1) for output in each], 1) for each in (got, expected))
        order = torch.cdist(rows, wanted).argmin(0)
        assert sorted(order.tolist()) == list(range(len(wanted)))
        message = lambda text, runtime=runtime: f"{runtime}: {text}"  # noqa: E731
        torch.testing.assert_close(rows[order], wanted, atol=1e-3, rtol=1e-3, msg=message)


def test_models_built_while_enabled_follow_disable(attended):
    with compat.enabled():
        model = build("d_fine")  # its layers store the function as an attribute
        attended.clear()
        model(**images())
        assert attended
        copy = pickle.loads(pickle.dumps(model))
    attended.clear()
    outputs = [each(**images()).pred_boxes for each in (model, copy, build("d_fine"))]
    assert not attended
    assert outputs[0].equal(outputs[1]) and outputs[0].equal(outputs[2])
