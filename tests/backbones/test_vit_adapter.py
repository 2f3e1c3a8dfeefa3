"""ViT-Adapter. The authors' code and Meta's run beside it in ``tests/environments/test_vit_adapter.py``."""

import copy
import functools
import math
import sys

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo.models  # noqa: F401  registers the backbone
from dcnzoo.backbones import ViTAdapter
from dcnzoo.backbones.windows import WindowAttention
from dcnzoo.detect.session import Session
from dcnzoo.export.onnx import export_onnx
from dcnzoo.layers import MultiScaleDeformableAttention
from dcnzoo.ops import flops
from dcnzoo.report.explain import explain_network, offset_table
from dcnzoo.report.sampling import Box, record_sampling
from tests.helpers.modules import shapes

TINY = dict(embed_dim=24, depth=4, num_heads=3)
VIT = dict(model_name="vit_tiny_patch16_224", **TINY, init_values=1.0)
BEIT = dict(model_name="beitv2_base_patch16_224", **TINY)
DINOV3 = dict(model_name="vit_tiny_patch16_dinov3_qkvb", **TINY)
SMALL = dict(conv_inplane=4, deform_num_heads=3)
WINDOWS = dict(window=[3, None, 3, 2], **SMALL)
META = dict(injectors=False, stage_maps=True, final_norm=True, prefix_tokens=True, frozen=True, **SMALL)
KINDS = {
    "windows": (VIT, WINDOWS),
    "beit": (BEIT, dict(window=3, pad_input=True, stage_maps=True, **SMALL)),
    "dinov3": (DINOV3, dict(prefix_tokens=True, **SMALL)),
    "meta": (DINOV3, META),
}


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm is not installed: make setup installs it")


@torch.no_grad()
def disturb(adapter):
    """Change each initial value a little, so that no factor and no offset is zero."""
    for parameter in adapter.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return adapter


def build(kind, **others):
    torch.manual_seed(0)
    vit, options = KINDS[kind]
    return disturb(ViTAdapter(vit, **{**options, **others}))


@pytest.fixture(scope="module", params=KINDS)
def built(request, timm):
    return build(request.param)


@pytest.fixture
def adapter(built):
    """A copy: tests change its type and its mode."""
    return copy.deepcopy(built)


def gradients(adapter, x):
    adapter.zero_grad()
    sum(level.sin().sum() for level in adapter(x)).backward()
    return {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}


def test_pads_to_32_and_crops(adapter):
    adapter = adapter.double().eval()
    x = torch.randn(2, 3, 70, 100, dtype=torch.float64)
    maps = adapter(x)
    assert [tuple(y.shape) for y in maps] == [(2, 24, 18, 25), (2, 24, 9, 13), (2, 24, 5, 7), (2, 24, 3, 4)]
    for level, whole in zip(maps, adapter(F.pad(x, (0, 28, 0, 26))), strict=True):
        torch.testing.assert_close(level, whole[..., : level.shape[2], : level.shape[3]], rtol=0, atol=0)
    torch.testing.assert_close(adapter(x.contiguous(memory_format=torch.channels_last)), maps)
    torch.testing.assert_close(adapter(x[1:])[2], maps[2][1:])
    with pytest.raises(RuntimeError, match=r"x: expected \(N, 3, H, W\), got \(3, 70, 100\)"):
        adapter(x[0])


def test_one_image_has_the_gradients_of_two_equal_ones(adapter):
    """torch's batch norm on a CPU computes wrong gradients for one image with the strides of a sequence."""
    adapter = adapter.double().train()
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    one, two = gradients(adapter, x), gradients(adapter, x.repeat(2, 1, 1, 1))
    vit = ("patch_embed", "pos_embed", "blocks", "cls_token", "reg_token")
    assert any(name.startswith(vit) for name in one) != adapter.frozen
    # DDP requires a gradient of each trained parameter
    assert one.keys() == {name for name, p in adapter.named_parameters() if p.requires_grad}
    for name, gradient in one.items():
        torch.testing.assert_close(2 * gradient, two[name], atol=1e-9, rtol=1e-9, msg=name)


def test_recomputed_and_in_bfloat16(adapter):
    adapter = adapter.float().eval()
    x = torch.randn(2, 3, 70, 100)
    expected, wanted = adapter(x), gradients(adapter, x)
    adapter.with_cp = True
    torch.testing.assert_close(gradients(adapter, x), wanted, rtol=1e-5, atol=1e-5)
    adapter.with_cp = False
    with torch.autocast("cpu", torch.bfloat16):
        halves = adapter(x)
    for level, half in zip(expected, halves, strict=True):
        assert (half - level).abs().mean() < 0.02 * level.abs().max()
    half = adapter.bfloat16()
    if half.rope is not None:
        assert half.rope.periods.dtype == half._rotary((3, 5)).dtype == torch.float32
    points = []
    hook = half.interactions[0].extractor.attn.register_forward_pre_hook(
        lambda _, args: points.append(args[1])
    )
    assert half(x.bfloat16())[0].dtype == torch.bfloat16
    hook.remove()
    assert points[0].dtype == torch.float32


SIZES = (1, 3, 97, 32), (3, 3, 64, 130)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sizes"), [("windows", ()), *((kind, SIZES) for kind in KINDS)])
def test_export(timm, kind, sizes, tmp_path):
    """The file agrees with PyTorch, also at sizes that 32 does not divide and that differ from the example's.

    torch.export takes a minute for dynamic sizes, a few seconds for a fixed one.
    """
    adapter, path = build(kind, frozen=True, use_extra_extractor=False).eval(), tmp_path / "a.onnx"
    example, dim = torch.randn(2, 3, 70, 100), torch.export.Dim.DYNAMIC
    export_onnx(adapter, (example,), path, dynamic_shapes=({0: dim, 2: dim, 3: dim},) if sizes else None)
    for runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
        session = Session(path, runtime)
        for size in (example.shape, *sizes):
            x = torch.randn(size)
            outputs = session._run({next(iter(session.inputs)): x.numpy()})
            for output, expected in zip(outputs, adapter(x), strict=True):
                torch.testing.assert_close(torch.from_numpy(output), expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(("frozen", "injectors"), [(False, True), (True, True), (True, False)])
def test_three_steps(timm, frozen, injectors):
    """The loss falls; the ViT changes unless it is frozen.

    Gradients pass through a frozen ViT to the injectors; without these, its activations are not stored.
    """
    adapter = build("windows", frozen=frozen, injectors=injectors).train()
    assert adapter.blocks.training != frozen and adapter.spm.training
    tokens, x = [], torch.randn(2, 3, 70, 100)
    adapter.blocks[3].register_forward_hook(lambda _, inputs, output: tokens.append(output))
    before = {name: p.detach().clone() for name, p in adapter.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(sum((level - 1).square().mean() for level in adapter(x)))
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    assert tokens[0].requires_grad == injectors
    same = {name for name, p in adapter.named_parameters() if torch.equal(p, before[name])}
    vit = {name for name in before if name.split(".")[0] in ("patch_embed", "pos_embed", "blocks")}
    assert same == (vit if frozen else set()) and vit


def test_flops(timm):
    """Four times the tokens need four times the operations in windows; ms_deform_attn's are counted."""
    flops.register()
    adapter, counts = build("windows", window=3).eval(), []
    for size in (96, 192):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            adapter(torch.randn(1, 3, size, size))
        operations = counter.get_flop_counts()["Global"]
        assert operations[torch.ops.dcnzoo.ms_deform_attn] > 0
        counts.append(counter.get_total_flops())
    assert counts[1] == pytest.approx(4 * counts[0], rel=0.01)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_patch14_reg4_dinov2"])
def test_tokens_are_timms(timm, name):
    """After each block, the tokens equal timm's bit by bit, with class and register tokens."""
    vit = disturb(timm.create_model(name, **TINY, dynamic_img_size=True)).eval()
    if "14" in name:
        vit.set_input_size(patch_size=16, img_size=64)
    size = (64, 96) if vit.pos_embed is None else (64, 64)
    x, expected = torch.randn(1, 3, *size), None
    expected = vit.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True)[1]
    adapter, tokens = ViTAdapter(vit, **META).eval(), []
    for block in adapter.blocks:
        block.register_forward_hook(lambda _, inputs, output: tokens.append(output))
    adapter(x)
    for output, (patches, prefix) in zip(tokens, expected, strict=True):
        torch.testing.assert_close(output, torch.cat([prefix, patches], 1), rtol=0, atol=0)


def test_positions_are_resized_without_antialiasing(timm):
    vit = disturb(timm.create_model(**VIT))
    table = vit.pos_embed.detach().clone()
    adapter, tokens = ViTAdapter(vit, **WINDOWS).eval(), []
    adapter.blocks[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    x = torch.randn(1, 3, 128, 160)
    adapter(x)
    patches = vit.patch_embed.proj(x).permute(0, 2, 3, 1)
    resample = timm.layers.resample_abs_pos_embed
    for antialias, same in ((False, True), (True, False)):
        positions = resample(table, (8, 10), num_prefix_tokens=1, antialias=antialias)[:, 1:]
        assert torch.allclose(tokens[0], patches + positions.reshape(1, 8, 10, 24), atol=1e-5) == same


@pytest.mark.parametrize("pad_input", [False, True])
@pytest.mark.parametrize("kind", [VIT, BEIT])
def test_windows(timm, kind, pad_input):
    """The result is that of timm's attention on each window by itself; padded keys take part."""
    attention = timm.create_model(**kind).blocks[0].attn.double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.2)
    names, window = set(shapes(attention)), 4
    module = WindowAttention(attention, window, pad_input).eval()
    assert set(shapes(module)) == names
    x = torch.randn(2, 6, 9, 24, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for top in range(0, 6, window):
        for left in range(0, 9, window):
            part = x[:, top : top + window, left : left + window]
            rows, columns = part.shape[1:3]
            padding = (0, 0, 0, window - columns, 0, window - rows)
            padded = module._project(F.pad(part, padding)), F.pad(module._project(part), padding)
            qkv = padded[0 if pad_input else 1]
            query, key, value = qkv.flatten(1, 2).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
            scores = query @ key.transpose(-1, -2) * 8**-0.5
            if kind is BEIT:
                at = torch.cartesian_prod(torch.arange(window), torch.arange(window))
                dy, dx = (at[:, None] - at[None] + window - 1).unbind(-1)
                scores = scores + module.relative_position_bias_table[dy * (2 * window - 1) + dx].permute(
                    2, 0, 1
                )
            out = module.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
            out = out.unflatten(1, (window, window))[:, :rows, :columns]
            expected[:, top : top + window, left : left + window] = out
    torch.testing.assert_close(module(x), expected, atol=1e-10, rtol=1e-10)


def test_three_maps_have_no_unused_parameters(timm):
    adapter = ViTAdapter(VIT, out_indices=(3, 1, 2), **WINDOWS)
    assert [y.shape[-1] for y in adapter(torch.randn(2, 3, 64, 64))] == [8, 4, 2]
    gradients(adapter, torch.randn(2, 3, 64, 64))
    assert all(p.grad is not None for p in adapter.parameters())


UNI_PERCEIVER = {
    "patch_embed.proj.": "visual_embed.patch_embed.proj.",
    "norm_pre.": "visual_embed.embeddings_norm.",
    ".attn.qkv.": ".self_attn.in_proj.",
    ".attn.proj.": ".self_attn.out_proj.",
    ".mlp.fc1.": ".linear1.",
    ".mlp.fc2.": ".linear2.",
    ".ls1.gamma": ".gamma_1",
    ".ls2.gamma": ".gamma_2",
    "blocks.": "layers.",
}


def test_official_names(timm):
    vit = dict(VIT, class_token=False, global_pool="avg", pre_norm=True)
    adapter = disturb(ViTAdapter(vit, pad_input=True, patch_bias=True, norm_eps=1e-5, **WINDOWS))
    assert {m.eps for m in adapter.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    official = {}
    for name, value in adapter.state_dict().items():
        for ours, theirs in UNI_PERCEIVER.items():
            inner = name.startswith(("interactions", "spm"))
            name = name if inner else name.replace(ours, theirs)
        official[name] = value
    positions = official.pop("pos_embed")[0]
    times = torch.randn(8, 24)
    official["visual_embed.patch_embed.spatial_pos_embed.weight"] = positions - times[0]
    official["visual_embed.patch_embed.temporal_pos_embed.weight"] = times
    other = ViTAdapter(vit, pad_input=True, patch_bias=True, norm_eps=1e-5, **WINDOWS)
    detector = nn.ModuleDict({"backbone": other})
    detector.load_state_dict({f"backbone.{name}": value for name, value in official.items()})
    torch.testing.assert_close(other.state_dict(), adapter.state_dict())


def test_official_tables_have_no_class_token(timm):
    vit, options = KINDS["beit"]
    one, other = ViTAdapter(vit, **options), ViTAdapter(vit, **options)
    state = disturb(one).state_dict()
    key = "blocks.2.attn.relative_position_bias_table"
    assert state[key].shape == (28, 3)
    state = {k: v[:25] if k.endswith("bias_table") else v for k, v in state.items()}
    state[key.replace("bias_table", "index")] = torch.zeros(9, 9, dtype=torch.int64)
    assert other.load_state_dict(state, strict=False).unexpected_keys == [key.replace("bias_table", "index")]
    one.eval(), other.eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(one(x), other(x))


@pytest.mark.parametrize(
    ("name", "options"), [("vit_small_patch14_dinov2", WINDOWS), ("vit_small_patch16_dinov3_qkvb", META)]
)
def test_a_detectors_init_weights_keeps_pretrained_ones(timm, tmp_path, name, options):
    """MMEngine calls ``init_weights`` of direct children, and the one of timm's models draws new weights."""
    vit = disturb(timm.create_model(name, **TINY, num_classes=0))
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    backbone = dict(type="ViTAdapter", vit=dict(model_name=name, **TINY), **options)
    fpn = dict(type="mmdet.FPN", in_channels=[24] * 4, out_channels=16, num_outs=5)
    head = dict(type="mmdet.RetinaHead", num_classes=3, in_channels=16, feat_channels=16)
    detector = MODELS.build(
        dict(
            type="mmdet.RetinaNet",
            backbone=dict(backbone, pretrained=str(tmp_path / "vit.pth")),
            neck=fpn,
            bbox_head=head,
        )
    )
    patches = detector.backbone.patch_embed.proj.weight
    before = patches.detach().clone()
    detector.init_weights()
    state = {k: v for k, v in detector.backbone.state_dict().items() if k in vit.state_dict()}
    assert len(state) > 50
    size = vit.patch_embed.patch_size[0]
    for key, value in state.items():
        expected = vit.state_dict()[key]
        if key == "patch_embed.proj.weight" and size != 16:
            expected = F.interpolate(expected, (16, 16), mode="bilinear")
        torch.testing.assert_close(value, expected, msg=key, rtol=0, atol=0)
    assert not torch.equal(patches, before)
    assert detector.backbone.frozen != patches.requires_grad
    torch.save({"pos_embed": torch.zeros(1, 3, 24)}, tmp_path / "other.pth")
    detector.backbone.pretrained = str(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"pretrained: .*(pos_embed|patch_embed)"):
        detector.backbone.init_weights()
    detector.backbone.pretrained = "nowhere.pth"
    with pytest.raises(ValueError, match=r"pretrained: expected .*, got 'nowhere.pth': FileNotFoundError"):
        detector.backbone.init_weights()


def test_layer_wise_learning_rates(timm):
    model = nn.Module()
    model.backbone = ViTAdapter(VIT, **WINDOWS)
    model.head = nn.Linear(3, 3)
    wrapper = build_optim_wrapper(
        model,
        ConfigDict(
            optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05),
            constructor="CustomLayerDecayOptimizerConstructor",
            paramwise_cfg=dict(num_layers=4, layer_decay_rate=0.5),
        ),
    )
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in wrapper.param_groups
        for p in group["params"]
        if id(p) in names  # MMEngine adds a group whose parameter is not the model's
    }
    assert groups.keys() == set(names.values())
    expected = {
        "backbone.pos_embed": (0.5**5, 0.05),
        "backbone.patch_embed.proj.bias": (0.5**5, 0.0),
        "backbone.blocks.0.attn.qkv.weight": (0.5**4, 0.05),
        "backbone.blocks.3.ls2.gamma": (0.5, 0.0),
        "backbone.interactions.0.extractor.attn.sampling_offsets.weight": (1.0, 0.05),
        "backbone.level_embed": (1.0, 0.05),
        "backbone.spm.stem.0.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.0),
    }
    assert {name: groups[name] for name in expected} == expected


WRONG = [
    (VIT, dict(out_indices=(0, 4)), "out_indices: expected a sequence of numbers from 0 to 3"),
    (VIT, dict(drop_path_rate=1.0), "drop_path_rate: expected a number from 0 to below 1, got 1.0"),
    (VIT, dict(window=True), "window: expected a size or None for each of 4 blocks, got True"),
    (VIT, dict(window=[3, 3]), "window: expected a size or None for each of 4 blocks"),
    (VIT, dict(window=0), "window: expected at least 1"),
    (DINOV3, dict(window=3), "window: expected None for a ViT with rotary positions"),
    (VIT, dict(window=3, prefix_tokens=True), "window: expected None with prefix_tokens"),
    (BEIT, dict(window=[3, None, 3, 3]), "window: expected a size for each block of a ViT with relative"),
    (5, {}, "vit: expected a name of timm, .*, got 5"),
    ("vit_tiny_patch16_24", {}, "vit: expected a name of timm, such as vit_tiny_patch16_224, got"),
    (VIT, dict(pretrained=__file__), "pretrained: expected a file of weights"),
    (nn.Linear(3, 3), {}, "vit: expected a vision transformer of timm .*, got Linear"),
    (dict(model_name="resnet18"), {}, "vit: expected a vision transformer of timm .*, got ResNet"),
    *(
        (name, {}, f"vit: expected a vision transformer of timm .*, got {kind}")
        for name, kind in (
            ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
            ("vit_small_r26_s32_224", "VisionTransformer"),
            ("vit_small_patch16_18x2_224", "VisionTransformer"),
        )
    ),
]


@pytest.mark.parametrize(("vit", "options", "message"), WRONG)
def test_errors(timm, vit, options, message):
    with pytest.raises(ValueError, match=message):
        ViTAdapter(vit, **SMALL, **options)


def test_initial_values_are_the_authors(timm):
    torch.manual_seed(0)
    adapter = ViTAdapter(dict(VIT, embed_dim=96), **(SMALL | dict(conv_inplane=32)))
    assert adapter.level_embed.std().item() == pytest.approx(1, rel=0.2)
    own = [*adapter.spm.modules(), *adapter.interactions.modules(), adapter.up]
    attentions = [module for module in own if isinstance(module, MultiScaleDeformableAttention)]
    inside = {layer for attention in attentions for layer in attention.modules()}
    assert attentions and all(not attention.sampling_offsets.weight.any() for attention in attentions)
    assert all(attention.sampling_offsets.bias.any() for attention in attentions)
    for layer in set(own) - inside:
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        assert layer.bias is None or not layer.bias.any()
        fan_out = (
            math.prod(layer.kernel_size) * layer.out_channels / layer.groups
            if hasattr(layer, "groups")
            else 0
        )
        std = math.sqrt(2 / fan_out) if fan_out else 0.02
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1), layer


@pytest.mark.parametrize("eps", [None, 1e-6, 1e-5])
def test_eps_of_norms(timm, eps):
    vit = timm.create_model(**VIT, num_classes=0, norm_layer=functools.partial(nn.LayerNorm, eps=1e-3))
    adapter = ViTAdapter(vit, **SMALL, norm_eps=eps)
    assert adapter.blocks[0].norm1.eps == (eps or 1e-3)
    assert adapter.interactions[0].injector.query_norm.eps == (eps or 1e-6)


def test_pictures_of_one_channel(timm):
    adapter = ViTAdapter(dict(VIT, in_chans=1), **SMALL).eval()
    x = torch.randn(1, 1, 64, 64)
    assert [tuple(y.shape) for y in adapter(x)] == [(1, 24, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    with pytest.raises(RuntimeError, match=r"x: expected \(N, 1, H, W\)"):
        adapter(x.expand(1, 3, 64, 64))


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"ViTAdapter: vit: .*pip install") as error:
        ViTAdapter("vit_tiny_patch16_224")
    assert "\n" not in str(error.value)


def test_explain(adapter):
    """The points of an extractor on the ViT's map are those where its attention samples."""
    adapter = adapter.float().eval()
    x, seen = torch.randn(1, 3, 64, 96), []
    layer, queries = adapter.interactions[1].extractor.attn, []
    attend = layer._attend
    layer._attend = lambda *args: seen.append(args[3:]) or attend(*args)
    layer.register_forward_pre_hook(lambda _, args: queries.append(args[0]))
    with record_sampling(adapter) as fields:
        adapter(x)
    del layer._attend
    field = next(field for field in fields if field.name == "interactions.1.extractor")
    locations, weights = seen[0]  # [1, Q, heads, 1, points, 2], (x, y), in parts of the map
    points = locations[0, :96, :, 0].flatten(1, 2) * torch.tensor([6, 4]) - 0.5
    torch.testing.assert_close(field.points, points.flip(-1).permute(1, 2, 0).unflatten(2, (8, 12)))
    torch.testing.assert_close(field.weight, weights[0, :96].flatten(1).T.unflatten(1, (8, 12)))
    explanation = explain_network(adapter, x, Box(40, 20, 40, 20))
    assert explanation.receptive_field.shape == (64, 96)
    windows = all(window is not None for window in adapter.windows)
    assert windows or explanation.receptive_field.all(), "each block without windows reads the whole picture"
    rows = {name: row for name, *row in offset_table(explanation.fields, explanation.statistics)}
    assert not any(name.endswith("extractor.attn") for name in rows)
    shift = layer.sampling_offsets(queries[0]).detach().abs().mean()
    assert float(rows["interactions.1.extractor"][1]) == pytest.approx(float(shift), abs=2e-3)


def test_an_integer_as_the_injectors_factor(timm):
    assert build("windows", init_values=0).interactions[0].injector.gamma.dtype == torch.float32
