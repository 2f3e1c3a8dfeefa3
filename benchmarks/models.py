"""Time complete models: detectors with dcnzoo, with compiled mmcv and without DCN; models of other packages;
imports; the zoo.

::

    .nox/peers/bin/python -m benchmarks.models 'Mask R-CNN*' FCOS* Deformable* --write detectors
    .nox/transformers/bin/python -m benchmarks.models 'Transformers*' --write hosts
    python -m benchmarks.models --precisions --against 60de176f  # fused layers, bfloat16; writes their page
    python -m benchmarks.models --zoo        # writes the entries that models of the zoo lack

Each contestant is a process with random weights, batch size 1 and float32; the processes take turns. A
training step is forward and backward, without the optimiser. Other work on the machine slows all samples of a
round: compare the ratios.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import itertools
import logging
import multiprocessing
import os
import re
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from dcnzoo.detect.detections import Detections

# dcnzoo is imported only in the processes that use it: without it, mmcv runs its own operators
ROOT = Path(__file__).resolve().parents[1]
INFERENCE, TRAINING = "inference", "training step"
Step = Callable[[str], object]  # takes INFERENCE or TRAINING


# Contestants: functions that a new process calls once; they return what is timed


def detector(
    config: str, size: tuple[int, int], plugin: bool = True, channels_last: bool = False, amp: bool = False
) -> Step:
    """Return a detector of MMDetection; without the ``plugin``, it uses mmcv's operators.

    With ``amp``, it runs as in ``train --amp``.
    """
    if plugin:
        import dcnzoo.models  # noqa: F401
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import Config
    from mmengine.hub import get_config
    from mmengine.registry import init_default_scope

    if not plugin:
        import mmcv._ext

        if "dcnzoo" in mmcv._ext.__file__:
            raise ImportError("expected mmcv with compiled operators, got mmcv-lite: nox -s peers")
    init_default_scope("mmdet")
    cfg = get_config(config) if "::" in config else Config.fromfile(ROOT / config)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    _separate_classes(model)
    if channels_last:
        model.to(memory_format=torch.channels_last)

    # an image of noise with ten boxes and masks
    batch = demo_mm_inputs(1, [[3, *size]], num_items=[10], num_classes=10, with_mask=True)

    def step(mode: str) -> None:
        data = copy.deepcopy(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            if mode == INFERENCE:
                with torch.no_grad():
                    model.eval().test_step(data)
                return
            data = model.train().data_preprocessor(data, training=True)
            model.zero_grad()
            loss = model.parse_losses(model(**data, mode="loss"))[0]
        loss.backward()

    return step


def _separate_classes(model: torch.nn.Module) -> None:
    """Scale random weights, which give all classes the same score, so that there are detections and masks."""
    if hasattr(model, "roi_head"):
        model.roi_head.bbox_head.fc_cls.weight.data.mul_(100)


def transformer(cls: str, size: tuple, config: dict, outputs: tuple, text: tuple, plugin: bool) -> Step:
    """Return a model of Transformers in its published size; ``text``: token ids."""
    import transformers

    from dcnzoo.compat.transformers import enable

    if plugin:
        enable()
    kind = getattr(transformers, cls)
    inputs = {"pixel_values": torch.randn(1, 3, *size)}
    if text:
        inputs["input_ids"] = torch.tensor([text])
    model = kind(kind.config_class(**config))

    def step(mode: str) -> None:
        model.train(mode == TRAINING)
        with torch.set_grad_enabled(mode == TRAINING):
            results = model(**inputs)
            if mode == TRAINING:
                model.zero_grad()
                values = torch.cat([results[name].flatten() for name in outputs])
                values[values.isfinite()].sum().backward()  # Grounding DINO has logits of -inf

    return step


def adapter(size: tuple[int, int], vit: str = "small", plain: bool = False, **options) -> Step:
    """Return ViT-Adapter of a DeiT; if ``plain``, with the formula of mmcv's layer in place of dcnzoo's."""
    from dcnzoo.backbones import ViTAdapter
    from dcnzoo.compat import provide

    provide("torchvision")  # for timm
    _attend_by(plain)
    settings = dict(model_name=f"deit_{vit}_patch16_224", init_values=1.0)
    model, x = ViTAdapter(settings, **options), torch.randn(1, 3, *size)
    return _step_of(model, lambda: sum(level.square().mean() for level in model(x)))


def attention(size: tuple[int, int], plain: bool = False) -> Step:
    """Return the operator of one of ViT-Adapter-S's extractors, from maps of strides 8 to 32 to one of 16."""
    from dcnzoo.layers import ms_deform_attn

    _attend_by(plain)
    height, width = (n // 16 for n in size)
    queries, heads, points = 4 * height * width + height * width + height * width // 4, 6, 4
    value = torch.randn(1, height * width, heads, 64, requires_grad=True)
    locations = torch.rand(1, queries, heads, 1, points, 2, requires_grad=True)
    weights = torch.rand(1, queries, heads, 1, points, requires_grad=True)
    shapes, starts = torch.tensor([[height, width]]), torch.tensor([0])
    tensors = torch.nn.ParameterList([value, locations, weights])
    attend = partial(ms_deform_attn.ms_deform_attn, value, shapes, starts, locations, weights)
    return _step_of(tensors, lambda: attend().sum())


def _attend_by(plain: bool) -> None:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    from dcnzoo.layers import ms_deform_attn

    def formula(value, shapes, starts, locations, weights):
        return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)

    if plain:
        ms_deform_attn.ms_deform_attn = formula


def _step_of(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    def step(mode: str) -> None:
        model.train(mode == TRAINING)
        with torch.set_grad_enabled(mode == TRAINING):
            value = loss()
        if mode == TRAINING:
            model.zero_grad()
            value.backward()

    return step


def imports(statement: str) -> Step:
    return lambda mode: subprocess.run([sys.executable, "-c", statement], check=True).returncode


def of_zoo(name: str) -> Step:
    from dcnzoo import zoo
    from dcnzoo.openmmlab.flops import random_batch
    from dcnzoo.openmmlab.runs import execute
    from dcnzoo.openmmlab.runs.recipe import Recipe

    model = execute.build(Recipe.read(zoo.find(name).config))
    return lambda mode: len(torch.no_grad()(model.test_step)(random_batch(800, 1333)))


def loaded(config: str, size: tuple[int, int], fuse: bool = False, amp: bool = False) -> Step:
    """Return a detector as `dcnzoo.load` does: with the weights of a zoo name, else with random ones.

    A step is from a picture, of shapes or of noise, to its boxes, scores and labels.
    """
    from mmengine.hub import get_config

    import dcnzoo.models  # noqa: F401
    from dcnzoo.data.shapes import ShapesSpec, draw_image
    from dcnzoo.openmmlab import detector as detectors
    from dcnzoo.openmmlab.runs import execute
    from dcnzoo.openmmlab.runs.recipe import Recipe, read_config_file
    from dcnzoo.zoo.source import resolve

    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    weights = None
    if "::" in config:
        cfg = get_config(config)
        cfg.model.backbone.init_cfg = None
    else:
        source = resolve(config)
        weights = None if source.weights is None else source.read_weights()
        cfg = read_config_file(source.config, {})
        image = np.ascontiguousarray(draw_image(ShapesSpec(size=size[0]), "val", 0)[0][..., ::-1])
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == "Resize":
            step.scale = size[::-1]
    model = execute.build(Recipe(cfg), weights)
    if weights is None:
        model.init_weights()  # Deformable DETR creates parameters from memory that is not initialized
        _separate_classes(model)
    detect = detectors.TorchDetector(model, fuse=fuse, precision="bf16" if amp else "float32")

    def step(mode: str) -> tuple[np.ndarray, ...]:
        result = detect(image)
        return result.boxes, result.scores, result.labels

    return step


def of_tree(tree: Path, build: partial[Step]) -> Step:
    """Build a contestant of another revision, by the same function in that revision's copy of this file."""
    sys.path.insert(0, str(tree))
    import dcnzoo

    if not Path(dcnzoo.__file__).is_relative_to(tree):
        raise ImportError(f"expected dcnzoo of {tree}, but {dcnzoo.__file__} was imported before")
    theirs = runpy.run_path(str(tree / "benchmarks/models.py"))[build.func.__name__]
    return theirs(*build.args, **build.keywords)


# Comparisons: the first contestant is the unit of time


def _with_dcn(deformable: str, plain: str) -> dict[str, Callable[[], Step]]:
    on, off = (partial(detector, config, (800, 1344)) for config in (deformable, plain))
    return {
        "dcnzoo": on,
        "compiled mmcv": partial(on, plugin=False),
        "without DCN": off,
        "dcnzoo, channels last": partial(on, channels_last=True),
        "without DCN, channels last": partial(off, channels_last=True),
        "dcnzoo, channels last, bfloat16": partial(on, channels_last=True, amp=True),
    }


def _transformer(cls: str, size: tuple[int, int], config: dict, outputs=("logits", "pred_boxes"), text=()):
    build = partial(transformer, cls, size, config, outputs, text)
    return {"dcnzoo": partial(build, plugin=True), "own operator": partial(build, plugin=False)}


_MASK_RCNN = "mmdet::dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py"
_DEFORMABLE_DETR = "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py"
_DETR = partial(detector, _DEFORMABLE_DETR, (800, 1344))
_DINO = partial(detector, "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py", (800, 1066))
_FCOS = "mmdet::fcos/fcos_r50{}-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
_SWIN_T = dict(model_type="swin", embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
_SWIN_T["drop_path_rate"] = 0.0
_RESNET = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
COMPARISONS: dict[str, dict[str, Callable[[], Step]]] = {
    "Mask R-CNN R-50, DCNv2": _with_dcn(
        _MASK_RCNN,
        "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    ),
    "FCOS R-50, DCN": _with_dcn(_FCOS.format("-dcn"), _FCOS.format("")),
    "Deformable DETR R-50": {"dcnzoo": _DETR, "compiled mmcv": partial(_DETR, plugin=False)},
    "DINO R-50": {"dcnzoo": _DINO, "compiled mmcv": partial(_DINO, plugin=False)},
    "Mask R-CNN InternImage-T": {
        "dcnzoo": partial(detector, "configs/internimage/mask-rcnn_internimage-t_fpn_1x_coco.py", (800, 1344))
    },
    "ViT-Adapter-S, 512×512": {
        "dcnzoo": partial(adapter, (512, 512)),
        "plain formula": partial(adapter, (512, 512), plain=True),
        "windows": partial(adapter, (512, 512), window=[14, 14, None] * 4),
        "with_cp": partial(adapter, (512, 512), with_cp=True),
        "frozen": partial(adapter, (512, 512), frozen=True),
        "frozen, without injectors": partial(adapter, (512, 512), frozen=True, injectors=False),
    },
    "ViT-Adapter-B, 512×512": {
        "dcnzoo": partial(adapter, (512, 512), "base"),
        "frozen": partial(adapter, (512, 512), "base", frozen=True),
        "frozen, without injectors": partial(adapter, (512, 512), "base", frozen=True, injectors=False),
    },
    "ViT-Adapter-S, 512×512: attention of an extractor": {
        "dcnzoo": partial(attention, (512, 512)),
        "plain formula": partial(attention, (512, 512), plain=True),
    },
    "Transformers: Deformable DETR R-50, 800×1066": _transformer(
        "DeformableDetrForObjectDetection", (800, 1066), {"backbone_config": _RESNET}
    ),
    "Transformers: Grounding DINO Swin-T, 800×1066": _transformer(
        "GroundingDinoForObjectDetection",
        (800, 1066),
        {"backbone_config": _SWIN_T | {"out_features": ["stage2", "stage3", "stage4"]}},
        text=(101, 1037, 4937, 1012, 1037, 6556, 2491, 1012, 102),  # a cat. a remote control.
    ),
    "Transformers: Mask2Former Swin-T, 800×1066": _transformer(
        "Mask2FormerForUniversalSegmentation",
        (800, 1066),
        {"backbone_config": _SWIN_T | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}},
        ("class_queries_logits", "masks_queries_logits"),
    ),
    "Transformers: RT-DETR R-50, 640×640": _transformer("RTDetrForObjectDetection", (640, 640), {}),
    "startup": {
        name: partial(imports, name)
        for name in ("import torch", "import dcnzoo", "import dcnzoo.ops", "import dcnzoo.layers")
    },
}


# Measurement


def _start(build: Callable[[], Step], threads: int) -> None:
    global _step
    logging.disable(logging.INFO)  # init_weights writes a line for each parameter
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _step = build()


class Sample(NamedTuple):
    seconds: float
    memory: int  # peak of the process, in bytes
    result: object  # of the step


def _run(mode: str) -> Sample:
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    start = time.perf_counter()
    result = _step(mode)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    return Sample(seconds, int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024, result)


def measure(
    contestants: dict[str, Callable[[], Step]], modes: tuple[str, ...], rounds: int, threads: int
) -> dict[str, dict[str, list[Sample]]]:
    """Return the samples of each pass and contestant, one per round after a warm-up."""
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, dict[str, list[Sample]]] = {}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(ProcessPoolExecutor(1, spawn, _start, (build, threads)))
            for name, build in contestants.items()
        }
        for mode in modes:
            found[mode] = {name: [] for name in processes}
            for number in range(rounds + 1):
                for name, process in processes.items():
                    sample = process.submit(_run, mode).result()
                    if number:
                        found[mode][name].append(sample)
    return found


def relative(seconds: Sequence[float], unit: Sequence[float]) -> tuple[str, str]:
    """Return the median and the quartiles of the ratios of two contestants in each round."""
    ratios = [own / base for own, base in zip(seconds, unit, strict=True)]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return f"{middle:.2f}", f"{low:.2f} – {high:.2f}"


def rows(comparison: str, found: dict[str, dict[str, list[Sample]]]) -> list[list[str]]:
    table = []
    for mode, by_contestant in found.items():
        unit = next(iter(by_contestant.values()))
        for name, samples in by_contestant.items():
            seconds, memory, _ = zip(*samples, strict=True)
            figures = [
                f"{statistics.median(seconds):.3f}",
                *relative(seconds, [base.seconds for base in unit]),
            ]
            figures.append(f"{max(memory) / 2**20:,.0f}")
            table.append([comparison, mode, name, *figures])
    return table


# Fused layers and bfloat16

METHOD = """Batch size 1, channels last, random weights unless trained. Each variant is a process; they take
turns. An inference is from a picture to its detections. Ratios are medians over the rounds, of the two times
in a round. The other columns compare the detections with those of the first variant: the share with the same
class and an IoU of at least 0.8 (*same*), and the largest differences of their boxes, in pixels, and scores.
Random weights amplify rounding. Written by `python -m benchmarks.models --precisions --against REVISION`.
"""
PRECISIONS = {  # models with their pass, and contestants to which the variants give arguments
    ("Mask R-CNN R-50, DCNv2", INFERENCE): partial(loaded, _MASK_RCNN, (480, 800)),
    ("Mask R-CNN R-50, DCNv2", TRAINING): partial(detector, _MASK_RCNN, (480, 800), channels_last=True),
    ("Deformable DETR R-50", INFERENCE): partial(loaded, _DEFORMABLE_DETR, (480, 800)),
    ("Mask R-CNN R-14, DCNv2, trained", INFERENCE): partial(
        loaded, "mask-rcnn_r14-mdconv_fpn_8e_shapes", (256, 256)
    ),
}
VARIANTS: dict[str, dict[str, dict]] = {
    INFERENCE: {"float32": {}, "float32, fused": {"fuse": True}, "bfloat16": {"fuse": True, "amp": True}},
    TRAINING: {"float32": {}, "bfloat16": {"amp": True}},
}


def differences(one: Detections, other: Detections) -> tuple[float, float]:
    """Return the largest differences of coordinates, in pixels, and of scores between counterparts."""
    from dcnzoo.detect.timing import SAME, overlaps

    boxes, scores = [0.0], [0.0]
    shares = overlaps(one, other)
    for index in np.flatnonzero(shares.max(1, initial=0) >= SAME):
        match = shares[index].argmax()
        boxes.append(np.abs(one.boxes[index] - other.boxes[match]).max())
        scores.append(np.abs(one.scores[index] - other.scores[match]))
    return float(max(boxes)), float(max(scores))


def measure_precisions(rounds: int, against: str | None) -> list[list[str]]:
    """Return a table of the variants of the models, first those of another revision."""
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # else `import torch` imports the present dcnzoo
    from benchmarks.revision import checkout
    from dcnzoo.detect.detections import Detections
    from dcnzoo.detect.timing import agreement

    table = [
        ["threads", "model", "pass", "variant", "seconds", "relative", "same", "boxes, pixels", "scores"]
    ]
    for threads, ((name, mode), build) in itertools.product((1, 2), PRECISIONS.items()):
        contestants: dict[str, Callable[[], Step]] = {
            f"{against}, {label}": partial(of_tree, checkout(against), partial(build, **options))
            for label, options in VARIANTS[mode].items()
            if against and not label.endswith("fused")
        }
        contestants |= {label: partial(build, **options) for label, options in VARIANTS[mode].items()}
        samples = measure(contestants, (mode,), rounds, threads)[mode]
        first, *_ = samples.values()
        for variant, own in samples.items():
            seconds = [sample.seconds for sample in own]
            row = [str(threads), name, mode, variant, f"{statistics.median(seconds):.3f}"]
            row.append(relative(seconds, [sample.seconds for sample in first])[0])
            if mode == INFERENCE:
                pair = [Detections(*each[0].result) for each in (first, own)]
                largest = differences(*pair)
                row += [f"{agreement(pair[:1], pair[1:]):.1%}", *(f"{value:.2g}" for value in largest)]
            table.append(row + [""] * (len(table[0]) - len(row)))
            print(" | ".join(table[-1]), flush=True)
    return table


# entries of the metafiles, as in tools/model_zoo.py
CPU_TIME = "CPU time (× Faster R-CNN R-50)"
PARAMETERS, FLOPS = "Parameters (M)", "FLOPs (G)"


def measure_zoo(rounds: int, threads: int) -> None:
    """Measure the models of the zoo that lack entries, and write these to their metafiles."""
    from dcnzoo import zoo
    from dcnzoo.openmmlab.flops import count
    from dcnzoo.openmmlab.runs import execute
    from dcnzoo.openmmlab.runs.recipe import Recipe
    from dcnzoo.utils.files import write_text

    baseline = partial(of_zoo, "faster-rcnn_r50_fpn_1x_coco")
    for model in zoo.models():
        complete = model.metadata.keys() >= {CPU_TIME, PARAMETERS, FLOPS}
        if complete or model.package != "dcnzoo" or model.config.parent.name == "demo":
            continue
        pair = {"unit": baseline, "model": partial(of_zoo, model.name)}
        found = measure(pair, (INFERENCE,), rounds, threads)[INFERENCE]
        built = execute.build(Recipe.read(model.config))
        ((operations, _),) = count(built)
        ratios = [own.seconds / unit.seconds for own, unit in zip(found["model"], found["unit"], strict=True)]
        entries = {
            CPU_TIME: round(statistics.median(ratios), 2),
            PARAMETERS: round(sum(p.numel() for p in built.parameters()) / 1e6, 1),
            FLOPS: round(sum(operations.values()) / 1e9, 1),
        }
        entries = {name: value for name, value in entries.items() if name not in model.metadata}
        file = ROOT / "configs" / model.config.parent.name / "metafile.yml"
        # up to the entry's Metadata, or to its end if it has none
        start = rf"(  - Name: {re.escape(model.name)}\n(?:    .*\n)*?)(?:    Metadata:\n|(?!    ))"
        lines = "".join(f"      {name}: {value}\n" for name, value in entries.items())
        text = re.sub(start, rf"\g<1>    Metadata:\n{lines}", file.read_text(encoding="utf-8"), count=1)
        write_text(file, text)
        print(f"{model.name}: {entries}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("comparisons", nargs="*", metavar="COMPARISON", help=f"or patterns: {'; '.join(COMPARISONS)}")
    add("--rounds", type=int, default=5, help="samples after a warm-up (default: 5)")
    add("--threads", type=int, default=2)
    add("--write", metavar="NAME", help="write docs/benchmarks/NAME-<machine and versions>.md")
    add("--precisions", action="store_true", help="measure fused layers and bfloat16, and write their page")
    add("--against", metavar="REVISION", help="with --precisions: compare with this revision")
    add("--zoo", action="store_true", help="measure the models whose metafiles lack entries")
    args = parser.parse_args()
    if args.precisions:
        table = partial(measure_precisions, args.rounds, args.against)
        return write_page("precisions", "Fused layers and bfloat16", {}, table, METHOD)
    if args.zoo:
        return measure_zoo(args.rounds, args.threads)
    chosen = [name for name in COMPARISONS if any(fnmatch.fnmatchcase(name, p) for p in args.comparisons)]
    if not chosen:
        parser.error(f"COMPARISON: expected some of {'; '.join(COMPARISONS)}")

    def comparisons() -> list[list[str]]:
        result = [["model", "pass", "contestant", "seconds", "time / first", "quartiles", "peak memory, MiB"]]
        for name in chosen:
            modes = (INFERENCE,) if name == "startup" else (INFERENCE, TRAINING)
            result += rows(name, measure(COMPARISONS[name], modes, args.rounds, args.threads))
            print(*map(" | ".join, result[1:]), sep="\n", flush=True)
        return result

    method = __doc__[__doc__.index("Each contestant") :]
    write_page(args.write, "Complete models", {"threads": args.threads}, comparisons, method)


def write_page(
    name: str | None, title: str, settings: dict, measure: Callable[[], list[list[str]]], method: str
) -> None:
    """Measure a table and, with a name, write its page."""
    from benchmarks.measure import describe, listed, markdown, slug
    from dcnzoo.utils.files import write_text

    facts = describe("mmcv", "transformers", "onnxruntime", "openvino") | settings
    text = f"# {title}\n\n{listed(facts)}.\n\n{method}\n{markdown(measure())}\n"
    if name:
        path = ROOT / "docs/benchmarks" / f"{name}-{slug(facts)}.md"
        write_text(path, text)
        print(f"written: {path}")


if __name__ == "__main__":
    main()
