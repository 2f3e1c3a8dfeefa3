"""What the tools here share that try configs out: models without weights, small images, one-line reasons."""

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
    """Relative to the folder; without those that others are put together from."""
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(path for path in found if "_base_" not in path.parts)


def read(name: str) -> Config:
    """A config without addresses of weights; ``package::…`` as inherited by a user's."""
    package, colons, path = name.partition("::")
    if colons:
        # a list replaces the one that is inherited: what the package's config imports is named again
        file = mim_folder(package) / "configs" / path
        inherited = Config.fromfile(file, import_custom_modules=False).get("custom_imports") or {}
        theirs = inherited.get("imports", [])
        imports = ["dcnzoo.models", *([theirs] if isinstance(theirs, str) else theirs)]
        for module in imports:  # says what is missing, where mmengine shows all of sys.path
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
            elif (key in PRETRAINED and isinstance(value, str)) or (key == "init_cfg" and pretrained):
                node[key] = None
            forget_weights(value)
    elif isinstance(node, list | tuple):
        for value in node:
            forget_weights(value)


def build(cfg: Config, package: str = "mmdet") -> nn.Module:
    models = importlib.import_module(f"{package}.registry").MODELS
    with DefaultScope.overwrite_default_scope(package):
        return models.build(copy.deepcopy(cfg.model))  # DINO writes into it


def prepare(cfg: Config, package: str = "mmdet") -> nn.Module:
    """A model with initial weights, as a Runner would have it before the first step."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(package):
        model = revert_sync_batchnorm(build(cfg, package))
        model.init_weights()
    for count in ("epoch", "iter"):  # which TOOD, BoxInst and YOLOX ask a Runner for
        MessageHub.get_current_instance().update_info(count, 0)
    return model


def image_size(cfg: Config) -> int:
    """128 pixels; more for SSD, which has no padding, and for queries chosen among the places in an image."""
    if cfg.model.get("backbone", {}).get("type") == "SSDVGG":
        return 400
    return 256 if cfg.model.get("num_queries", 0) > 300 else 128


def images(number: int, size: int = 128, alike: bool = False, **options: object) -> dict:
    """Random images with everything that may be annotated on them, one high, one wide or ``alike``."""
    short = size * 3 // 4
    sizes, objects = [[3, size, short], [3, short, size]][:number], [2, 1][:number]
    if alike:
        sizes = sizes[:1] * number
    annotated = dict(num_items=objects, num_classes=3, with_mask=True, with_semantic=True)
    return demo_mm_inputs(number, sizes, **annotated, **options)


def finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def expect(condition: bool, otherwise: str) -> None:
    """``assert``, also under ``python -O``."""
    if not condition:
        raise AssertionError(otherwise)


def reason(error: BaseException) -> str:
    """An error in a line that fits into a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".partition(";")[0].replace("|", "/")
