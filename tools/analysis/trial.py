"""Shared code of the tools that try configs: models without weights, small images, one-line reasons."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import torch

import dcnzoo.models  # noqa: F401  before mmdet, which needs mmcv.ops
from dcnzoo.openmmlab.packages import mim_folder

# isort: split
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
MMDETS = mim_folder("mmdet") / "configs"
OF_A_USER = "_base_ = '{}'\ncustom_imports = dict(imports={})\n"
PRETRAINED = ("pretrained", "teacher_ckpt", "checkpoint")  # and init_cfg=dict(checkpoint=…)


def configs_in(folder: Path) -> list[Path]:
    """List the configs in a folder, relative to it, without base configs."""
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(path for path in found if "_base_" not in path.parts)


def read(name: str) -> Config:
    """Read a config and remove addresses of weights; ``package::…`` is inherited by a user's config."""
    package, colons, path = name.partition("::")
    if colons:
        # a list replaces the inherited list, so repeat the imports of the package's config
        file = mim_folder(package) / "configs" / path
        inherited = Config.fromfile(file, import_custom_modules=False).get("custom_imports") or {}
        theirs = inherited.get("imports", [])
        imports = ["dcnzoo.models", *([theirs] if isinstance(theirs, str) else theirs)]
        for module in imports:  # its error names the missing module; mmengine's shows all of sys.path
            importlib.import_module(module)
        cfg = Config.fromstring(OF_A_USER.format(name, imports), ".py")
    else:
        cfg = Config.fromfile(ROOT / name)
    forget_weights(cfg.get("model"))
    return cfg


def forget_weights(node: object) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            pretrained = isinstance(value, dict) and "checkpoint" in value
            if key in PRETRAINED and value is True:
                node[key] = False  # timm's
            elif (key.endswith(PRETRAINED) and isinstance(value, str)) or (key == "init_cfg" and pretrained):
                node[key] = None
            forget_weights(value)
    elif isinstance(node, list | tuple):
        for value in node:
            forget_weights(value)


def build(cfg: Config, package: str = "mmdet") -> nn.Module:
    models = importlib.import_module(f"{package}.registry").MODELS
    if "data_preprocessor" in cfg:  # as in mmengine's Runner
        cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(package):
        return models.build(copy.deepcopy(cfg.model))  # DINO modifies its config


def prepare(cfg: Config, package: str = "mmdet") -> nn.Module:
    """Build a model with initial weights, in the state before a Runner's first step."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(package):
        model = revert_sync_batchnorm(build(cfg, package))
        model.init_weights()
    for count in ("epoch", "iter"):  # read by TOOD, BoxInst and YOLOX
        MessageHub.get_current_instance().update_info(count, 0)
    return model


def image_size(cfg: Config) -> int:
    """Return 128 pixels; more for SSD, which has no padding, and for detectors that select many queries."""
    if cfg.model.get("backbone", {}).get("type") == "SSDVGG":
        return 400
    return 256 if cfg.model.get("num_queries", 0) > 300 else 128


def images(number: int, size: int = 128, alike: bool = False, **options: object) -> dict:
    """Return random images with all kinds of annotations: one high and one wide, or ``alike``."""
    short = size * 3 // 4
    sizes, objects = [[3, size, short], [3, short, size]][:number], [2, 1][:number]
    if alike:
        sizes = sizes[:1] * number
    annotated = dict(num_items=objects, num_classes=3, with_mask=True, with_semantic=True)
    return demo_mm_inputs(number, sizes, **annotated, **options)


def finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def expect(condition: bool, otherwise: str) -> None:
    """Raise AssertionError if ``condition`` is False, even under ``python -O``."""
    if not condition:
        raise AssertionError(otherwise)


def reason(error: BaseException) -> str:
    """Format an error as one line for a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".partition(";")[0].replace("|", "/")
