"""Measure exported deformable convolution: one operator, and a complete RetinaNet R-18 with DCNv2.

All contestants run in one process, with one thread each, and take turns. Times are CPU times of the process,
so other work on the machine has little effect; compare the ratios. Results are written to
docs/benchmarks/deployment-….md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dcnzoo.models  # noqa: F401  before mmdet

# isort: split
import mmdet
import numpy as np
import onnxruntime
import torch
from machine import describe, slug
from measure import quantile
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from rich.console import Console
from torch import Tensor, nn

from dcnzoo.cli import one_line_errors
from dcnzoo.export import register_onnx_ops
from dcnzoo.export.exporters import DEFAULT_OPSET
from dcnzoo.export.openvino import make_core
from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.openmmlab.export.detectors import export_detector
from dcnzoo.openmmlab.export.verify import compare, predict
from dcnzoo.utils.progress import make_progress

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = {
    "native": "DeformConv",
    "gathernd": "GatherND",
    "gatherelements": "GatherElements",
    "gridsample": "GridSample",
}
CANDIDATES = 2000  # boxes that go into NMS, as with a trained detector
OPERATORS = ((64, 50, 84), (256, 50, 84))  # channels, height, width; 3×3
Run = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Result:
    case: str
    contestant: str
    median: float  # CPU seconds per call
    low: float
    high: float


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", type=int, nargs=2, default=[512, 640], help="height and width of the detector's input"
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="number of samples per contestant (default: 15)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", metavar="FOLDER")
    return parser.parse_args()


def by_onnxruntime(path: Path, *args: np.ndarray) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {node.name: arg for node, arg in zip(session.get_inputs(), args, strict=True)}
    return lambda: session.run(None, feed)


def by_openvino(path: Path, *args: np.ndarray) -> Run:
    core = make_core()
    model = core.compile_model(
        core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    return lambda: [np.array(value) for value in model(list(args)).values()]


@torch.no_grad()
def take_turns(case: str, runs: dict[str, Run], rounds: int, step: Callable[[], None]) -> list[Result]:
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm-up
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            samples[name].append(time.process_time() - start)
            step()
    return [Result(case, name, *(quantile(s, q) for q in (0.5, 0.25, 0.75))) for name, s in samples.items()]


def operator(shape: tuple[int, int, int], folder: Path) -> dict[str, Run]:
    channels = shape[0]
    layer = PackedDeformConv2d(channels, channels, 3, padding=1, modulated=True).eval()
    nn.init.normal_(layer.conv_offset.bias)  # zero initially, where samples lie exactly on pixels
    images = torch.randn(1, *shape)
    runs: dict[str, Run] = {}
    for target, name in GRAPHS.items():
        path = folder / f"{target}-{channels}.onnx"
        register_onnx_ops(target)
        torch.onnx.export(layer, (images,), path, dynamo=False, opset_version=DEFAULT_OPSET)  # fast
        runs[f"onnxruntime, {name}"] = by_onnxruntime(path, images.numpy())
    for target in ("native", "gathernd"):
        path = folder / f"{target}-{channels}.onnx"
        runs[f"OpenVINO, {GRAPHS[target]}"] = by_openvino(path, images.numpy())
    with torch.no_grad():
        expected = layer(images)
    for name, run in runs.items():
        torch.testing.assert_close(torch.from_numpy(run()[0]), expected, rtol=0, atol=1e-3, msg=name)
    return {"PyTorch": lambda: layer(images), **runs}


@torch.no_grad()
def retinanet(images: Tensor) -> nn.Module:
    """Build R-18 with DCNv2 in c3 to c5, untrained; the score threshold keeps ``CANDIDATES`` boxes."""
    cfg = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs/retinanet/retinanet_r18_fpn_1x_coco.py")
    cfg.model.backbone.update(dcn=True, init_cfg=None)
    init_default_scope("mmdet")
    detector = MODELS.build(cfg.model).eval()
    MMLogger.get_instance("mmengine").setLevel("ERROR")  # initialisation would log every parameter
    detector.init_weights()
    for name, module in detector.named_modules():
        if name.endswith("conv_offset"):
            nn.init.normal_(module.bias)
    head = detector.bbox_head
    nn.init.normal_(head.retina_cls.weight, std=0.1)
    scores = torch.cat([level.sigmoid().flatten() for level in head(detector.extract_feat(images))[0]])
    head.test_cfg.score_thr = float(scores.topk(CANDIDATES).values[-1])
    return detector


def whole(shape: list[int], folder: Path) -> dict[str, Run]:
    images = torch.randn(1, 3, *shape)
    detector = retinanet(images)
    for target in ("native", "gathernd"):
        export_detector(detector, images, folder / f"{target}.onnx", deform_conv=target)
    runs = {
        "onnxruntime, DeformConv": by_onnxruntime(folder / "native.onnx", images.numpy()),
        "onnxruntime, GatherND": by_onnxruntime(folder / "gathernd.onnx", images.numpy()),
        "OpenVINO, DeformConv": by_openvino(folder / "native.onnx", images.numpy()),
        "OpenVINO, GatherND": by_openvino(folder / "gathernd.onnx", images.numpy()),
    }
    expected = predict(detector, images)
    for name, run in runs.items():
        agreement = compare(dict(zip(("dets", "labels"), run(), strict=True)), expected)
        if not agreement.holds:
            raise SystemExit(f"error: {name}: {agreement}")
    return {"PyTorch": lambda: predict(detector, images), **runs}


def page(facts: dict, results: list[Result], rounds: int) -> str:
    lines = [
        "# Exported deformable convolution", "",
        ", ".join(f"{key} {value}" for key, value in facts.items()) + ".", "",
        f"Float32, one thread each, {rounds} rounds in one process. CPU time per call, median and quartiles.",
        "Other work on the machine affects CPU times only slightly; compare the ratios.",
        "Written by `python tools/benchmark/deployment.py`.",
    ]  # fmt: skip
    for case in dict.fromkeys(result.case for result in results):
        rows = [result for result in results if result.case == case]
        lines += ["", f"## {case}", "", "| | ms | × of onnxruntime's DeformConv |", "|---|---|---|"]
        unit = next(row.median for row in rows if row.contestant == "onnxruntime, DeformConv")
        for row in rows:
            times = f"{1e3 * row.median:.1f} ({1e3 * row.low:.1f} – {1e3 * row.high:.1f})"
            lines.append(f"| {row.contestant} | {times} | {row.median / unit:.2f} |")
    return "\n".join(lines) + "\n"


@one_line_errors()
def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import openvino

    facts = {
        **describe("cpu"),
        "onnxruntime": onnxruntime.__version__,
        "openvino": openvino.__version__.split("-")[0],
        "load_average_before": round(os.getloadavg()[0], 1),
    }
    console = Console(stderr=True)
    cases: dict[str, Callable[[Path], dict[str, Run]]] = {}
    for shape in OPERATORS:
        name = f"DCNv2 layer including its offset prediction, 3×3, 1 × {' × '.join(map(str, shape))}"
        cases[name] = lambda folder, shape=shape: operator(shape, folder)
    height, width = args.shape
    cases[f"RetinaNet R-18, DCNv2 in c3 to c5, 1 × 3 × {height} × {width}, with post-processing"] = (
        lambda folder: whole(args.shape, folder)
    )
    results: list[Result] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        make_progress(console, disable=not console.is_terminal) as bar,
    ):
        for case, make in cases.items():
            task = bar.add_task(case, total=None, note="export")
            runs = make(Path(folder))
            bar.update(task, total=args.rounds * len(runs), note="")
            results += take_turns(case, runs, args.rounds, lambda task=task: bar.advance(task))
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"deployment-{slug(facts)}"
    text = page(facts, results, args.rounds)
    stem.with_name(f"{stem.name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
