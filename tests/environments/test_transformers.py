"""docs/migration.md's recipe and tools/hub_kernel.py, beside Transformers' functions: ``nox -s projects``."""

import re
import runpy

import pytest
import torch

import dcnzoo
from tests.helpers.processes import ROOT, run_code

dcnzoo.provide("torchvision")  # torchvision itself does not load beside a CPU build of torch
transformers = pytest.importorskip("transformers", minversion="5", exc_type=ImportError)

PAGE = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
(RECIPE,) = re.findall(r"nox -s projects -->\n```python\n(import torch\n.*?)```", PAGE, re.DOTALL)
RESNET = dict(
    **dict(model_type="resnet", embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
    **dict(layer_type="basic", out_features=["stage2", "stage3", "stage4"]),
)
SWIN = dict(model_type="swin", embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4)
SWIN |= dict(image_size=64, out_features=["stage1", "stage2", "stage3", "stage4"])
MODELS = {
    "DeformableDetrForObjectDetection": dict(
        **dict(backbone_config=RESNET, d_model=32, encoder_layers=2, decoder_layers=2, num_queries=9),
        **dict(encoder_attention_heads=2, decoder_attention_heads=4, encoder_n_points=2, decoder_n_points=3),
        **dict(encoder_ffn_dim=16, decoder_ffn_dim=16),
    ),
    "Mask2FormerForUniversalSegmentation": dict(
        **dict(backbone_config=SWIN, hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_layers=2),
        **dict(encoder_feedforward_dim=16, dim_feedforward=16, decoder_layers=3, num_attention_heads=2),
        num_queries=7,
    ),
}


def build(name: str) -> torch.nn.Module:
    """A model in evaluation. Noise on its weights moves every sampling location."""
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**MODELS[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def results(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The outputs and the parameters' gradients, by name."""
    model.zero_grad()
    pictures = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    outputs = {k: v for k, v in model(pixel_values=pictures).items() if isinstance(v, torch.Tensor)}
    torch.manual_seed(2)
    sum((v * torch.randn_like(v)).mean() for v in outputs.values() if v.requires_grad).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert any("sampling_offsets" in name and grad.any() for name, grad in gradients.items())
    return {name: v.detach() for name, v in outputs.items()} | gradients


@pytest.mark.parametrize("name", MODELS)
def test_recipe(name, monkeypatch):
    from transformers.models.deformable_detr import modeling_deformable_detr
    from transformers.models.mask2former import modeling_mask2former

    for owner, attribute in (
        (modeling_deformable_detr.MultiScaleDeformableAttention, "forward"),
        (modeling_mask2former, "multi_scale_deformable_attention"),
    ):
        monkeypatch.setattr(owner, attribute, getattr(owner, attribute))  # restored after the test
    expected = results(build(name))
    names = {}
    exec(RECIPE, names)
    calls, operator = [], names["ms_deform_attn"]
    names["ms_deform_attn"] = lambda *tensors: calls.append(tensors) or operator(*tensors)
    model = build(name)
    actual = results(model)
    layers = sum(each.endswith("sampling_offsets") for each, _ in model.named_modules())
    assert len(calls) == layers > 0
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-5, msg=lambda m: f"{key}: {m}")  # noqa: B023


HUB = """
import sys
from pathlib import Path
import torch
from kernels import LocalLayerRepository, Mode, kernelize, register_kernel_mapping
from transformers.utils import import_utils
import transformers.utils
# Transformers wants a newer version of kernels than the one in PyPI
transformers.utils.is_kernels_available = import_utils.is_kernels_available = lambda *a, **k: True
sys.path.insert(0, sys.argv[2])
from tests.environments import test_transformers

layer = LocalLayerRepository(Path(sys.argv[1]), layer_name="MultiScaleDeformableAttention")
register_kernel_mapping({"MultiScaleDeformableAttention": {"cpu": layer}})
name = "DeformableDetrForObjectDetection"
expected = test_transformers.results(test_transformers.build(name))
model = kernelize(test_transformers.build(name), mode=Mode.TRAINING, device="cpu")
modules = [m for m in model.modules() if type(m).__name__ == "MultiScaleDeformableAttention"]
assert modules and all(m.forward.__func__.__module__.startswith("dcnzoo_hub") for m in modules)
actual = test_transformers.results(model)
assert actual.keys() == expected.keys()
for key, value in actual.items():
    torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-5, msg=lambda m: f"{key}: {m}")
"""


def test_kernel_of_the_hub(tmp_path):
    pytest.importorskip("kernels")
    runpy.run_path(str(ROOT / "tools/hub_kernel.py"))["write"](tmp_path / "kernel")
    run_code(HUB, tmp_path / "kernel", ROOT, HF_HUB_OFFLINE="1", KERNELS_OFFLINE="1")
