"""``dcnzoo.compat.transformers`` against Transformers' own functions: ``nox -s transformers``."""

import importlib
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from dcnzoo.compat import transformers as compat

transformers = pytest.importorskip("transformers", exc_type=ImportError)

RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "image_size": 64,
    "out_features": ["stage2", "stage3", "stage4"],
}
ALL_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
DETR = {
    "backbone_config": RESNET,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 9,
    "encoder_n_points": 2,
    "decoder_n_points": 3,
}
GROUNDING = DETR | {
    "backbone_config": SWIN,
    "text_config": {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 1024,
    },
}
RT_DETR = {
    "backbone_config": RESNET,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [12, 16, 20],
    "d_model": 16,
    "decoder_in_channels": [16, 16, 16],
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 9,
    "decoder_n_points": 2,
    "num_denoising": 0,
}
LW_DETR = {
    "c2f_num_blocks": 1,
    "d_model": 16,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4,
    "decoder_ffn_dim": 16,
    "num_queries": 9,
    "group_detr": 1,
}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
SEGMENTERS = {
    "backbone_config": SWIN | ALL_STAGES,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "dim_feedforward": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_attention_heads": 2,
    "num_queries": 7,
}
FAMILIES = {  # the model's class and its smallest configuration
    "deformable_detr": (
        "DeformableDetrForObjectDetection",
        DETR | {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 9},
    ),
    "grounding_dino": ("GroundingDinoForObjectDetection", GROUNDING),
    "mm_grounding_dino": ("MMGroundingDinoForObjectDetection", GROUNDING),
    "lw_detr": (
        "LwDetrForObjectDetection",
        LW_DETR
        | {
            "backbone_config": VIT
            | {
                "model_type": "lw_detr_vit",
                "pretrain_image_size": 64,
                "num_windows": 4,
                "window_block_indices": [0],
                "out_indices": [1, 2],
            },
            "projector_scale_factors": [2.0, 0.5],
        },
    ),
    "rf_detr": (
        "RfDetrForObjectDetection",
        LW_DETR
        | {
            "backbone_config": VIT
            | {"model_type": "rf_detr_dinov2", "num_windows": 2, "out_features": ["stage1", "stage2"]},
            "decoder_n_points": 3,
        },
    ),
    "rt_detr": ("RTDetrForObjectDetection", RT_DETR),
    "rt_detr_v2": ("RTDetrV2ForObjectDetection", RT_DETR),
    "d_fine": ("DFineForObjectDetection", RT_DETR | {"decoder_n_points": [3, 6, 2]}),
    "deimv2": ("Deimv2ForObjectDetection", RT_DETR | {"decoder_n_points": [2, 4, 2]}),
    "pp_doclayout_v2": (
        "PPDocLayoutV2ForObjectDetection",
        RT_DETR
        | {
            "class_thresholds": [0.0, 0.0],
            "class_order": [0, 1],
            "reading_order_config": {
                "hidden_size": 16,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "coordinate_size": 3,
                "shape_size": 2,
                "num_classes": 2,
            },
        },
    ),
    "pp_doclayout_v3": (
        "PPDocLayoutV3ForObjectDetection",
        RT_DETR
        | {
            "backbone_config": RESNET | ALL_STAGES,
            "x4_feat_dim": 8,
            "mask_feature_channels": [16, 16],
            "num_prototypes": 8,
        },
    ),
    "pp_doclayout_v4": ("PPDocLayoutV4ForObjectDetection", RT_DETR),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation",
        SEGMENTERS | {"feature_size": 32, "mask_feature_size": 32},
    ),
    "oneformer": (
        "OneFormerForUniversalSegmentation",
        SEGMENTERS
        | {
            "conv_dim": 32,
            "mask_dim": 32,
            "text_encoder_width": 16,
            "text_encoder_num_layers": 1,
            "task_seq_len": 7,
        },
    ),
    "omdet_turbo": (
        "OmDetTurboForObjectDetection",
        {
            "backbone_config": SWIN,
            "apply_layernorm_after_vision_backbone": False,
            "text_config": {
                "model_type": "clip_text_model",
                "hidden_size": 24,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "projection_dim": 16,
                "vocab_size": 1024,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            "text_projection_in_dim": 24,
            "text_projection_out_dim": 24,
            "class_embed_dim": 24,
            "task_encoder_hidden_dim": 16,
            "encoder_in_channels": [16, 32, 64],
            "vision_features_channels": [16, 16, 16],
            "encoder_hidden_dim": 16,
            "encoder_attention_heads": 2,
            "encoder_dim_feedforward": 16,
            "decoder_hidden_dim": 16,
            "decoder_num_heads": 2,
            "decoder_num_layers": 2,
            "decoder_dim_feedforward": 16,
            "num_queries": 9,
            "image_size": 64,
        },
    ),
}


@pytest.fixture(autouse=True)
def undone():
    yield
    compat.disable()
    torch._dynamo.reset()


def build(family, **changes):
    """A model in evaluation mode. Noise on its weights moves every sampling location."""
    torch.manual_seed(0)
    name, arguments = FAMILIES[family]
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**arguments | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def inputs(family):
    torch.manual_seed(1)
    wide = family not in ("lw_detr", "rf_detr", "omdet_turbo")  # these take square images
    images = torch.randn(2, 3, 64, 96 if wide else 64)
    match family:
        case "grounding_dino" | "mm_grounding_dino":
            tokens = torch.tensor([[101, 5, 6, 1012, 7, 1012, 102]] * 2)
            return {"pixel_values": images, "input_ids": tokens}
        case "oneformer":
            return {"pixel_values": images, "task_inputs": torch.randint(100, (2, 7))}
        case "omdet_turbo":
            return {
                "pixel_values": images,
                "classes_input_ids": torch.randint(5, 1000, (6, 5)),
                "classes_attention_mask": torch.ones(6, 5, dtype=torch.long),
                "classes_structure": torch.tensor([3, 3]),
                "tasks_input_ids": torch.randint(5, 1000, (2, 6)),
                "tasks_attention_mask": torch.ones(2, 6, dtype=torch.long),
            }
        case _:
            return {"pixel_values": images}


def results(model, arguments):
    """The output tensors and the parameters' gradients, by name."""
    model.zero_grad()
    for name in (
        "language_cache_class",
        "language_cache_prompt",
    ):  # OmDet-Turbo caches tensors of the previous graph
        if hasattr(model, name):
            getattr(model, name).__init__(capacity=10)
    outputs = {k: v for k, v in model(**arguments).items() if isinstance(v, torch.Tensor)}
    torch.manual_seed(2)
    floats = [v for v in outputs.values() if v.requires_grad and v.isfinite().all()]
    assert floats
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


@pytest.mark.parametrize("family", FAMILIES)
def test_family_equals_the_original(family, attended):
    model, arguments = build(family), inputs(family)
    want = results(model, arguments)
    layers = sum(name.endswith("sampling_offsets") for name, _ in model.named_modules())
    compat.enable()
    assert family in compat.families()
    attended.clear()  # drop the calls of enable()'s own check
    assert_equal(results(model, arguments), want, 1e-5)
    assert len(attended) == layers > 0
    compat.disable()
    assert_equal(results(model, arguments), want, 0)
    assert len(attended) == layers


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_family_equals_the_original(family):
    model, arguments = build(family), inputs(family)
    want = results(model, arguments)
    recorder = Recorder()
    model.compile(backend=recorder)
    with compat.enabled():
        assert_equal(results(model, arguments), want, 1e-5)
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
    assert sampling == set(FAMILIES)
    for family in FAMILIES:
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    with compat.enabled():
        assert set(compat.families()) == sampling
    assert compat.families() == []


def sampler(family):
    """The part of a family that dcnzoo replaces: a function, or a layer without parameters."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    if family == "deformable_detr":
        return module.MultiScaleDeformableAttention()
    return getattr(module, "multi_scale_deformable_attention" + "_v2" * (family == "rt_detr_v2"))


def sampler_inputs(family, dtype=torch.float32, batch=2, queries=7, points=(3, 3)):
    torch.manual_seed(0)
    sizes = [(5, 4), (2, 3)]
    value = torch.randn(batch, 26, 3, 4, dtype=dtype, requires_grad=True)
    locations = torch.rand(batch, queries, 3, sum(points), 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, 3, sum(points), dtype=dtype)
    if family != "rt_detr_v2":
        locations, weights = locations.unflatten(3, (2, -1)), weights.unflatten(3, (2, -1))
    locations.requires_grad_()
    weights.requires_grad_()
    match family:
        case "deformable_detr":
            levels = {"value_spatial_shapes": torch.tensor(sizes), "value_spatial_shapes_list": sizes}
            levels |= {"level_start_index": torch.tensor([0, 20]), "im2col_step": 64}
        case "rt_detr_v2":
            levels = {"value_spatial_shapes": sizes, "num_points_list": list(points)}
        case _:
            levels = {"value_spatial_shapes": sizes}
    return {"value": value, "sampling_locations": locations, "attention_weights": weights} | levels


def sampled(function, arguments):
    output = function(**arguments)
    leaves = [t for t in arguments.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    torch.manual_seed(1)
    return [output, *torch.autograd.grad((output * torch.randn_like(output)).sum(), leaves)]


SAMPLERS = ["deformable_detr", "mask2former", "rt_detr_v2"]  # one family per function


@pytest.mark.parametrize("family", SAMPLERS)
@pytest.mark.parametrize(
    "dtype, tolerance",
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)],
)
def test_dtypes(family, dtype, tolerance):
    function, arguments = sampler(family), sampler_inputs(family, dtype)
    want = sampled(function, arguments)
    with compat.enabled():
        got = sampled(function, arguments)
    for ours, theirs in zip(got, want, strict=True):  # bfloat16 rounds both locations, and theirs once more
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("family", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_has_the_original_dtype(family, dtype):
    function, arguments = sampler(family), sampler_inputs(family)
    arguments["value"] = arguments["value"].detach().to(dtype).requires_grad_()  # as from a linear layer
    with torch.autocast("cpu", dtype=dtype):
        want = sampled(function, arguments)
        with compat.enabled():
            got = sampled(function, arguments)
    for ours, theirs in zip(got, want, strict=True):  # compares the dtypes, too
        torch.testing.assert_close(
            ours, theirs, atol=1e-5 if ours.dtype == torch.float32 else 0.02, rtol=1e-5
        )


@pytest.mark.parametrize("family", SAMPLERS)
def test_compiled_functions_follow(family):
    function, arguments = sampler(family), sampler_inputs(family)
    want = sampled(function, arguments)
    recorder = Recorder()
    compiled = torch.compile(function, backend=recorder)
    for switch, name in (
        (compat.disable, "grid_sample"),
        (compat.enable, "ms_deform_attn"),
        (compat.disable, "grid_sample"),
    ):
        switch()
        recorder.calls.clear()
        got = sampled(compiled, arguments)
        assert recorder.count(name) > 0
        exact = name == "grid_sample"
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, atol=0 if exact else 1e-5, rtol=0)


@pytest.mark.parametrize("family", SAMPLERS)
def test_inductor(family):
    function, arguments = sampler(family), sampler_inputs(family)
    want = sampled(function, arguments)
    compat.enable()
    for got in (sampled(torch.compile(function, dynamic=dynamic), arguments) for dynamic in (False, True)):
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SAMPLERS)
@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_empty(family, empty):
    function, arguments = sampler(family), sampler_inputs(family, **{empty: 0})
    with compat.enabled():
        output, *gradients = sampled(function, arguments)
    assert output.shape == ((0, 7, 12) if empty == "batch" else (2, 0, 12))
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("points", [(4, 4), (3, 6), (6, 4), (1, 5)])
def test_levels_with_different_numbers_of_points(points, attended):
    function, arguments = sampler("rt_detr_v2"), sampler_inputs("rt_detr_v2", torch.float64, points=points)
    want = sampled(function, arguments)
    with compat.enabled():
        attended.clear()
        got = sampled(function, arguments)
    assert len(attended) == 1
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_discrete_sampling_is_the_original(backend, attended):
    model, arguments = build("rt_detr_v2", decoder_method="discrete"), inputs("rt_detr_v2")
    with torch.no_grad():
        want = model(**arguments).pred_boxes
        compat.enable()
        attended.clear()
        if backend:
            model.compile(backend=backend)
        got = model(**arguments).pred_boxes
    torch.testing.assert_close(got, want, atol=1e-5 if backend else 0, rtol=0)
    assert not attended


@pytest.mark.parametrize("family", SAMPLERS)
def test_exports_are_the_original(family):
    function, arguments = sampler(family), sampler_inputs(family)
    levels = {k: arguments[k] for k in arguments if not getattr(arguments[k], "requires_grad", False)}

    class Layer(nn.Module):
        def forward(self, value, sampling_locations, attention_weights):
            return function(
                value=value,
                sampling_locations=sampling_locations,
                attention_weights=attention_weights,
                **levels,
            )

    tensors = tuple(arguments[k].detach() for k in ("value", "sampling_locations", "attention_weights"))
    with compat.enabled():
        exported = torch.export.export(Layer(), tensors)
        traced = torch.jit.trace(Layer(), tensors)
    for graph in (exported.graph, traced.inlined_graph):
        assert "grid_sampler" in str(graph)
        assert "dcnzoo" not in str(graph)


@pytest.mark.parametrize("family", ["deformable_detr", "rt_detr", "d_fine"])
def test_training_step_with_a_loss(family, attended):
    labels = [{"class_labels": torch.tensor([1, 0]), "boxes": torch.rand(2, 4) * 0.4 + 0.3} for _ in range(2)]
    dropout = {} if family == "deformable_detr" else {"num_denoising": 4}
    with compat.enabled():  # D-FINE's layers keep the function
        model = build(family, dropout=0.0, **dropout).train()
    losses, gradients = [], []
    for switch in (compat.disable, compat.enable):
        switch()
        attended.clear()
        model.zero_grad()
        torch.manual_seed(2)  # for the denoising queries
        loss = model(**inputs(family), labels=labels).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert attended
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    assert_equal([gradients[1]], [gradients[0]], 1e-4)  # the loss is about 100


def test_models_built_while_enabled_follow_disable(attended):
    arguments = inputs("d_fine")  # its layers store the function as an attribute
    with compat.enabled():
        model = build("d_fine")
        attended.clear()
        model(**arguments)
        assert attended
        module = importlib.import_module("transformers.models.d_fine.modeling_d_fine")
        layer = model.model.decoder.layers[0].encoder_attn
        assert layer.ms_deformable_attn_core is module.multi_scale_deformable_attention_v2
        copy = pickle.loads(pickle.dumps(model))
    attended.clear()
    outputs = [each(**arguments).pred_boxes for each in (model, copy, build("d_fine"))]
    assert not attended
    assert outputs[0].equal(outputs[1]) and outputs[0].equal(outputs[2])


def test_a_changed_hook_stays(monkeypatch, attended):
    module = importlib.import_module("transformers.models.rt_detr.modeling_rt_detr")
    build("rt_detr_v2")
    original = module.MultiScaleDeformableAttention.forward

    def forward(self, value, shapes, sampling_locations, attention_weights, level_start_index):
        return original(
            self, value, shapes, None, level_start_index, sampling_locations, attention_weights, 64
        )

    monkeypatch.setattr(module.MultiScaleDeformableAttention, "forward", forward)
    with pytest.warns(UserWarning, match=r"transformers: rt_detr: expected") as caught:
        compat.enable()
    assert len(caught) == 1
    assert module.MultiScaleDeformableAttention.forward is forward
    assert "rt_detr" not in compat.families()
    assert "rt_detr_v2" in compat.families()
