"""Every config with deformable operators builds, predicts and trains.

The architecture of each config is complete; only the images are smaller, and weights are random. A config of
MMDetection is used as in a user's own config, with ``_base_ = 'mmdet::…'`` and ``custom_imports =
dict(imports=['dcnzoo.models'])`` and nothing else. Configs without deformable operators are skipped.
"""

import re
import tempfile
from pathlib import Path

import mmcv.ops
import pytest
from mmcv.ops.saconv import SAConv2d
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.coverage import trial
from benchmarks.coverage.families import configs_in
from benchmarks.coverage.trial import apart, detections, expect, finite, image_size, use_small_bert
from benchmarks.measure import ROOT
from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.openmmlab.hooks.channels_last import to_channels_last
from dcnzoo.utils.folders import mim_folder

LAYERS = (mmcv.ops.DeformConv2d, mmcv.ops.ModulatedDeformConv2d, mmcv.ops.DeformRoIPool, DCNv3, DCNv4)
# The names of such layers in configs
DEFORMABLE = re.compile("dcn(?!zoo|_on_last_conv=False)|Deform(Conv|RoI)|DyHead|VLFusion")
CALLS = {f"dcnzoo::{name}" for name in ("deform_conv", "deform_roi_pool", "dcnv3", "dcnv4")}

# Find configs


def config_names() -> list[str]:
    """Return dcnzoo's configs, then MMDetection's, without those that dcnzoo replaces."""
    own = configs_in(ROOT / "configs")
    others = [path for path in configs_in(mim_folder("mmdet") / "configs") if path not in own]
    return [f"configs/{path}" for path in own] + [f"mmdet::{path}" for path in others]


def is_deformable(module: nn.Module) -> bool:
    """Return whether a module is a deformable layer or calls ``deform_conv2d`` itself."""
    if isinstance(module, SAConv2d):
        return module.use_deform
    methods = (getattr(value, "__code__", None) for value in vars(type(module)).values())
    return isinstance(module, LAYERS) or any(code and "deform_conv2d" in code.co_names for code in methods)


def deformable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return deformable layers by name. Names in a teacher, which is no submodule, get ``teacher_model.``."""
    parts = {"": model}
    if isinstance(getattr(model, "teacher_model", None), nn.Module):
        parts["teacher_model."] = model.teacher_model
    modules = ((prefix + name, m) for prefix, part in parts.items() for name, m in part.named_modules())
    return {name: module for name, module in modules if is_deformable(module)}


def describe(model: nn.Module) -> str:
    """Return a model's deformable layers, such as ``backbone: DCNv2; bbox_head: DeformConv2d``, or ''."""
    kinds: dict[str, set[str]] = {}
    for name, module in deformable_layers(model).items():
        kinds.setdefault(name.split(".")[0], set()).add(type(module).__name__)
    return "; ".join(f"{part}: {', '.join(sorted(names))}" for part, names in kinds.items())


# Try configs


class _Calls(TorchDispatchMode):
    """Counts the calls of dcnzoo's deformable operators."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in CALLS
        return func(*args, **(kwargs or {}))


def try_out(cfg: Config) -> None:
    """Build the model, predict, and train for one step.

    Raises:
        Exception: something fails.
    """
    size, model = image_size(cfg), trial.prepare(cfg)
    to_channels_last(model)  # as dcnzoo.load and trainings do on a CPU
    layers = deformable_layers(model)
    own = {name: layer for name, layer in layers.items() if not name.startswith("teacher_model.")}
    learns = {name: [p for p in layer.parameters() if p.requires_grad] for name, layer in own.items()}
    gradients: dict[Tensor, bool] = {}
    for parameter in {p for parameters in learns.values() for p in parameters}:
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.update({p: finite(p.grad)}))
    with DefaultScope.overwrite_default_scope("mmdet"):
        with _Calls() as calls:
            predictions = trial.predict(model, detections(model, 1, size))
        expect(bool(calls.count) == bool(own), f"{calls.count} calls of dcnzoo's operators in the prediction")
        expect(all(map(finite, trial.tensors(predictions))), "predictions are not finite")
        with _Calls() as calls:
            loss = trial.train(model, cfg, detections(model, 2, size))
    expect(calls.count > 0, "no call of dcnzoo's operators in the training step")
    expect(loss > 0, f"the loss is {loss}")
    for name, parameters in learns.items():
        learnt = all(gradients.get(p) for p in parameters)
        expect(learnt, f"{name}: no gradient, or one that is not finite")


def result_of(name: str) -> str:
    """Return ``ok`` and the deformable layers, or the error in one line; ``ok: none`` without such layers."""

    def try_config() -> str:
        cfg = Config()
        with tempfile.TemporaryDirectory() as folder:
            try:
                cfg = trial.read(name)
                if "model" not in cfg:
                    return "ok: none"
                use_small_bert(cfg, Path(folder))
                layers = describe(trial.build(cfg))
            except Exception:
                if DEFORMABLE.search(cfg.pretty_text):
                    raise
                layers = ""  # the base of some configs is missing
            if layers:
                try_out(cfg)
        return f"ok: {layers or 'none'}"

    return apart(try_config)


@pytest.mark.parametrize("name", config_names())
def test_config(name, record):
    result = result_of(name)
    if result == "ok: none":
        pytest.skip("no deformable operator")
    record(name, name, result)
