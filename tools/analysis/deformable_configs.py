"""Find configs with deformable operators, and check that each builds, predicts and trains.

::

    python tools/analysis/deformable_configs.py               # all: ten minutes on one core
    python tools/analysis/deformable_configs.py 'tood|vfnet'  # configs whose name matches
    python tools/analysis/deformable_configs.py --out docs/deformable_configs.md

The architecture of each config is complete; only the images are smaller, and weights are random. A config of
MMDetection is used as in a user's own config, with ``_base_ = 'mmdet::…'`` and ``custom_imports =
dict(imports=['dcnzoo.models'])`` and nothing else.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dcnzoo.models  # noqa: F401  before mmdet, which needs mmcv.ops
from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.utils.progress import make_progress

# isort: split
import mmcv.ops
import mmdet
from mmcv.ops.saconv import SAConv2d
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from trial import MMDETS, ROOT, build, configs_in, expect, finite, image_size, images, prepare, read, reason

LAYERS = (mmcv.ops.DeformConv2d, mmcv.ops.ModulatedDeformConv2d, mmcv.ops.DeformRoIPool, DCNv3, DCNv4)
CALLS = {f"dcnzoo::{name}" for name in ("deform_conv", "deform_roi_pool", "dcnv3", "dcnv4")}
OPERATORS = (*LAYERS, mmcv.ops.deform_conv2d, mmcv.ops.modulated_deform_conv2d)

PAGE = """\
# Coverage of deformable configs

This page lists every config of dcnzoo and of MMDetection {version} whose model contains a deformable
operator, and whether it works. A config is *ok* if it builds, predicts on an image, and makes a training
step in which the gradient reaches every deformable layer. {number} configs are listed, and {working} of
them are ok.

The configs run on the CPU, with dcnzoo's operators and mmcv-lite. The architecture is complete, without
pretrained weights. The images have 128 pixels (256 for DINO). A config of MMDetection (`mmdet::…`) is
unchanged and used as the base of a config:

```python
_base_ = "mmdet::tood/tood_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["dcnzoo.models"])
```

Another {unknown} configs of MMDetection cannot be built without further packages or data; none of these
names a deformable layer. GLIP needs `transformers` and BERT. Its variants A, B and L
(`16xb2_ms-2x_funtune`) were tested by hand with transformers 4.45.2 and a BERT of random weights, and work.

`python tools/analysis/deformable_configs.py --out docs/deformable_configs.md` writes this page. Published
figures and weights: [model zoo](../model_zoo.md).

| config | deformable | result |
|---|---|---|
"""


# Find configs


def config_names() -> list[str]:
    """Return dcnzoo's configs, then MMDetection's, without those that dcnzoo replaces."""

    ours = configs_in(ROOT / "configs")
    theirs = [path for path in configs_in(MMDETS) if path not in ours]
    return [f"configs/{path.as_posix()}" for path in ours] + [f"mmdet::{path.as_posix()}" for path in theirs]


def is_deformable(module: nn.Module) -> bool:
    """Whether a module is a deformable layer or calls the function itself."""
    if isinstance(module, SAConv2d):
        return module.use_deform
    methods = (getattr(value, "__code__", None) for value in vars(type(module)).values())
    return isinstance(module, LAYERS) or any(code and "deform_conv2d" in code.co_names for code in methods)


def deformable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return deformable layers by name. A teacher's, which is not a submodule, are ``teacher_model.…``."""
    parts = {"": model}
    if isinstance(getattr(model, "teacher_model", None), nn.Module):
        parts["teacher_model."] = model.teacher_model
    modules = ((prefix + name, m) for prefix, part in parts.items() for name, m in part.named_modules())
    return {name: module for name, module in modules if is_deformable(module)}


def describe(cfg: Config) -> str:
    """Return the deformable layers of a config, such as ``backbone: DCNv2; bbox_head: DeformConv2d``, or ''.

    Raises:
        Exception: the model cannot be built.
    """
    try:
        with torch.device("meta"):
            model = build(cfg)
    except RuntimeError as error:
        if "meta tensors" not in str(error):
            raise
        model = build(cfg)  # it computes with values, which the meta device does not have
    found: dict[str, set[str]] = {}
    for name, module in deformable_layers(model).items():
        found.setdefault(name.split(".")[0], set()).add(type(module).__name__)
    return "; ".join(f"{part}: {', '.join(sorted(kinds))}" for part, kinds in found.items())


def names_in(text: str) -> str:
    """Find the types for :func:`describe` in the text of a config that cannot be built."""
    known = {"DCN", "DCNv2", "SAC", "DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"}
    for name, kind in MODELS.module_dict.items():
        imported = vars(sys.modules[kind.__module__]).values()
        if any(value is operator for value in imported for operator in OPERATORS):
            known.add(name)
    return ", ".join(sorted(known.intersection(re.findall(r"\w+", text))))


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
    size = image_size(cfg)
    model = prepare(cfg)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model.eval()
        layers = deformable_layers(model)
        own = {name: layer for name, layer in layers.items() if not name.startswith("teacher_model.")}
        with torch.no_grad(), _Calls() as calls:
            (sample,) = model.test_step(images(1, size))
        expect(bool(calls.count) == bool(own), f"{calls.count} calls of dcnzoo's operators in the prediction")
        found = sample.pred_instances.values()
        expect(all(finite(v) for v in found if isinstance(v, Tensor)), "predictions are not finite")

        model.train()
        gradients: dict[Tensor, bool] = {}
        learns = {name: [p for p in layer.parameters() if p.requires_grad] for name, layer in own.items()}
        for parameter in {p for parameters in learns.values() for p in parameters}:
            parameter.register_post_accumulate_grad_hook(lambda p: gradients.update({p: finite(p.grad)}))
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        with _Calls() as calls:
            losses = model.train_step(images(2, size), optimizer)
        expect(calls.count > 0, "no call of dcnzoo's operators in the training step")
        expect(finite(losses["loss"]) and losses["loss"] > 0, f"the loss is {losses['loss']}")
        for name, parameters in learns.items():
            expect(
                all(gradients.get(p) for p in parameters), f"{name}: no gradient, or one that is not finite"
            )


def result_of(cfg: Config) -> str:
    """Return ``ok``, or the reason for a failure in one line."""
    try:
        try_out(cfg)
    except Exception as error:
        return reason(error)
    return "ok"


# The table


def deformable_configs(names: list[str]) -> Iterator[tuple[str, Config | None, str, str]]:
    """Yield name, config, deformable layers, and the reason why the config cannot be built, or ''.

    Skips configs that can be built and have no deformable layer.
    """
    descriptions: dict[str, tuple[str, str]] = {}
    for name in names:
        try:
            cfg = read(name)
        except Exception as error:
            yield name, None, names_in((MMDETS / name.removeprefix("mmdet::")).read_text()), reason(error)
            continue
        if "model" not in cfg:
            continue
        model = repr(cfg.model)
        if model not in descriptions:
            try:
                descriptions[model] = describe(cfg), ""
            except Exception as error:
                descriptions[model] = names_in(model), reason(error)
        deformable, why_not = descriptions[model]
        if deformable or why_not:
            yield name, cfg, deformable, why_not


def page(rows: list[tuple[str, str, str]], unknown: int) -> str:
    working = sum(result == "ok" for *_, result in rows)
    head = PAGE.format(version=mmdet.__version__, number=len(rows), working=working, unknown=unknown)
    return head + "".join(f"| `{name}` | {deformable} | {result} |\n" for name, deformable, result in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pattern", nargs="?", default="", help="regular expression (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the page with the table")
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel("ERROR")  # initialisation would log every parameter
    console = Console(stderr=True)
    names = [name for name in config_names() if re.search(args.pattern, name)]
    with make_progress(console) as progress:
        task = progress.add_task("building", total=None, note="")
        found = list(deformable_configs(names))
        rows, unknown = [], 0
        progress.update(task, description="testing", total=len(found))
        for name, cfg, deformable, result in found:
            progress.update(task, note=name)
            if not deformable:
                unknown += 1
            else:
                result = result or result_of(cfg)
                rows.append((name, deformable, result))
                print(f"{name}: {result}", flush=True)
            progress.advance(task)
    if args.out:
        args.out.write_text(page(rows, unknown))


if __name__ == "__main__":
    main()
