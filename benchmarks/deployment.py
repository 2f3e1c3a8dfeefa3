"""Measure AP and time of exported detectors of each family, beside PyTorch's.

::

    python -m benchmarks.deployment --write     # about an hour on one core; finished results are kept
    python -m benchmarks.deployment RetinaNet
    dcnzoo data download --dataset-name fruits_nuts
    python -m benchmarks.deployment --large     # a quarter of an hour; writes the page of large detectors
    python -m benchmarks.deployment --export    # CPU seconds of exports; writes them into that page, too

Trains a small detector of each family on the generated shapes, exports it in each form, and evaluates it in
PyTorch and in each form on the same images. A small detector has the demo's ResNet-14 with DCNv2 and the
family's own neck, head, losses and post-processing; it learns in a minute on one core.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import dcnzoo.export
import dcnzoo.models
import dcnzoo.openmmlab.datasets
from benchmarks.measure import ROOT, describe, listed, markdown, parser_of, replace_section
from benchmarks.models import relative, write_page
from dcnzoo.compat.patches import Changes, ThreadChanges
from dcnzoo.data.shapes import CLASSES
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.timing import agreement, measure
from dcnzoo.export.passes import remove_assertions
from dcnzoo.export.registration import translation_table
from dcnzoo.openmmlab.detector import TorchDetector
from dcnzoo.openmmlab.export import rules
from dcnzoo.openmmlab.export.export import own_copy
from dcnzoo.openmmlab.export.modes import SymbolicSizes, data_sample, tensor_of
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.recipe import Recipe
from dcnzoo.utils.files import write_text
from dcnzoo.utils.folders import mim_folder
from tests.export.detectors import CONFIGS, calibrate, dicts, narrow

DEMO = ROOT / "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py"
MMDET = mim_folder("mmdet") / "configs"
CALLS = 100  # whose time is measured
LIMITS = {"box": 0.1, "mask": 0.3}  # largest difference in AP points in float32
WIDTH = 48  # of necks and heads
C2, C3, C4 = 64, 128, 256  # channels of the backbone's stages, at strides 4, 8 and 16


FORMS = {  # title, file and precision; int8: quantised with 100 of the training images
    "bf16": ("PyTorch, bfloat16", "", "bf16"),
    "onnxruntime": ("ONNX Runtime", "model.onnx", "float32"),
    "onnxruntime-fp16": ("ONNX Runtime, `--fp16`", "fp16.onnx", "float16"),
    "onnxruntime-int8": ("ONNX Runtime, `--int8`", "int8.onnx", "int8"),
    "openvino": ("OpenVINO", "model.xml", "float32"),
    "openvino-int8": ("OpenVINO, `--int8`", "int8.xml", "int8"),
}


# Small detectors


FAMILIES = ("FCOS", "FSAF", "RetinaNet", "SSD", "YOLOv3", "Faster R-CNN", "Cascade R-CNN", "Mask R-CNN")
FAMILIES += ("Cascade Mask R-CNN", "CornerNet", "PointRend", "Deformable DETR")
EPOCHS = {"CornerNet": 8, "Deformable DETR": 32}  # else 4


def small(name: str) -> Config:
    """Return the demo's config with a small detector of the family, for training on the generated shapes."""
    cfg = Config.fromfile(DEMO)
    backbone, preprocessor = cfg.model.backbone, cfg.model.data_preprocessor
    cfg.model = Config.fromfile(MMDET / CONFIGS[name].file).model
    masks = "mask_head" in cfg.model.get("roi_head", {})
    narrow(cfg.model, WIDTH, 128, len(CLASSES))
    cfg.model.backbone = backbone
    cfg.model.data_preprocessor = dict(preprocessor, pad_mask=masks)
    ADJUST.get(name, _one_stage if "bbox_head" in cfg.model else _two_stage)(cfg.model)
    epochs = cfg.train_cfg.max_epochs = EPOCHS.get(name, 4)
    cfg.param_scheduler[1].update(T_max=epochs, end=epochs)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None  # the detectors evaluate
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        for step in loader.dataset.pipeline:
            if step.type == "LoadAnnotations":
                step.with_mask = masks
    cfg.randomness = dict(seed=0)
    return cfg


def _one_stage(model: dict) -> None:
    model.neck = dict(type="FPN", in_channels=[C3, C4], out_channels=WIDTH, num_outs=2)
    head = model.bbox_head
    if "anchor_generator" in head:
        head.anchor_generator.strides = [8, 16]
    else:  # FCOS
        head.update(strides=[8, 16], regress_ranges=((-1, 48), (48, 10**8)))
        head.norm_cfg = dict(type="GN", num_groups=8)


def _two_stage(model: dict) -> None:
    model.neck = dict(type="FPN", in_channels=[C3, C4], out_channels=WIDTH, num_outs=2)
    model.rpn_head.anchor_generator = dict(
        type="AnchorGenerator", scales=[4, 8], ratios=[1.0], strides=[8, 16]
    )
    head = model.roi_head
    for extractor in (head.bbox_roi_extractor, head.get("mask_roi_extractor", {})):
        if extractor.get("type") == "SingleRoIExtractor":
            extractor.update(featmap_strides=[8, 16], finest_scale=64)
            extractor.roi_layer.sampling_ratio = 1
    for part in dicts([model.train_cfg.rcnn]):
        if part.get("type") == "RandomSampler":
            part.num = 32
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=48)
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=48)


def _pointrend(model: dict) -> None:
    _two_stage(model)
    model.roi_head.mask_roi_extractor.featmap_strides = [8]
    model.roi_head.point_head.fc_channels = WIDTH
    model.test_cfg.rcnn.update(subdivision_steps=3)  # 56 pixels across a box is enough here


def _ssd(model: dict) -> None:
    channels = [C3, C4, WIDTH, WIDTH]
    model.neck.update(in_channels=channels[:2], out_channels=channels, l2_norm_scale=None)
    model.neck.update(level_strides=(2, 2), level_paddings=(1, 1))
    model.bbox_head.in_channels = channels
    model.bbox_head.anchor_generator = dict(
        type="SSDAnchorGenerator", scale_major=False, input_size=128, strides=[8, 16, 32, 64],
        ratios=[[2], [2], [2], [2]], min_sizes=[24, 44, 64, 84], max_sizes=[44, 64, 84, 104],
    )  # fmt: skip


def _yolov3(model: dict) -> None:
    model.backbone.out_indices = (0, 1, 2)
    model.neck.update(in_channels=[C4, C3, C2], out_channels=[WIDTH, WIDTH, WIDTH // 2])
    model.bbox_head.update(
        in_channels=model.neck.out_channels, out_channels=[WIDTH] * 3, featmap_strides=[16, 8, 4]
    )
    model.bbox_head.anchor_generator.update(
        strides=[16, 8, 4],
        base_sizes=[
            [(104, 70), (70, 104), (84, 84)],
            [(70, 44), (44, 70), (56, 56)],
            [(40, 28), (28, 40), (32, 32)],
        ],
    )


def _cornernet(model: dict) -> None:
    """Put the corner heads on the finest map of an FPN instead of an hourglass."""
    model.backbone.out_indices = (0, 1, 2)
    model.neck = dict(type="FPN", in_channels=[C2, C3, C4], out_channels=WIDTH, num_outs=3)
    model.bbox_head.num_feat_levels = 1


def _detr(model: dict) -> None:
    model.num_queries = 60
    model.neck.in_channels = [C3, C4]
    model.neck.norm_cfg.num_groups = 8
    for part in dicts(model):
        sizes = {"embed_dims": WIDTH, "num_layers": 2, "feedforward_channels": 4 * WIDTH}
        part.update({key: value for key, value in sizes.items() if key in part})
    model.bbox_head.embed_dims = WIDTH
    model.positional_encoding.num_feats = WIDTH // 2
    model.test_cfg.max_per_img = 60


ADJUST = {
    "CornerNet": _cornernet,
    "Deformable DETR": _detr,
    "SSD": _ssd,
    "YOLOv3": _yolov3,
    "PointRend": _pointrend,
}


# Measurement


class Row:
    """One family: its config, its folder and its results."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.data = name, folder / "data"
        self.folder = folder / name.lower().replace(" ", "-")
        self.file, self.config = self.folder / "table.json", self.folder / "config.py"
        self.cfg = small(name)
        self.cfg.work_dir, self.cfg.log_level = str(self.folder / "logs"), "ERROR"
        for loader in (self.cfg.train_dataloader, self.cfg.test_dataloader):
            loader.dataset.update(data_root=f"{self.data}/", shapes=dict(train=640, val=256, seed=0))
        self.weights = self.folder / "logs" / f"epoch_{self.cfg.train_cfg.max_epochs}.pth"

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """The results of PyTorch and each form: AP in points by kind, time of a call."""
        return json.loads(self.file.read_text()) if self.file.is_file() else {}

    def keep(self, name: str, figures: dict[str, float]) -> None:
        results = self.results
        write_text(self.file, json.dumps({**results, name: {**results.get(name, {}), **figures}}))
        print(f"{self.name}, {name}: {figures}", flush=True)

    def run(self) -> None:
        """Run the missing steps."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cfg.dump(self.config)
        names = ["pytorch", *FORMS]
        if not self.weights.exists():
            cfg = Config(self.cfg.to_dict())
            cfg.resume, cfg.test_cfg, cfg.test_dataloader, cfg.test_evaluator = True, None, None, None
            Runner.from_cfg(cfg).train()
        for name in names:
            if name not in self.results:
                ap = self.load(name).evaluate(self.data / "annotations/val.json", images=self.data / "val")
                self.keep(name, {kind: 100 * ap[f"{kind} AP"] for kind in LIMITS if f"{kind} AP" in ap})
        if any("time" not in self.results[name] for name in names):
            self.measure(names)

    def load(self, name: str) -> BaseDetector:
        """Return the detector in PyTorch or, after the export, in a runtime; both with one thread."""
        _, file, precision = FORMS.get(name, ("", "", "float32"))
        if not file:
            return dcnzoo.load(self.config, checkpoint=self.weights, device="cpu", precision=precision)
        path = self.folder / file
        if not path.exists():
            detector = dcnzoo.load(self.config, checkpoint=self.weights, device="cpu")
            int8 = dcnzoo.export.Int8(self.data / "train")
            detector.export(path, precision=int8 if precision == "int8" else precision)
        return dcnzoo.export.Detector(path, threads=1)

    def measure(self, names: Sequence[str]) -> None:
        """Measure the CPU time of a picture relative to PyTorch's, interleaved.

        Keeps the median of the ratios as ``time``, and half of their interquartile range as ``spread``.
        """
        detectors = [self.load(name) for name in names]
        files = sorted((self.data / "train").iterdir())
        times = []
        for call in range(-5, CALLS):  # the first are warm-up
            picture = cv2.imread(str(files[call % len(files)]))
            times.append([cpu_seconds(each, picture, score_threshold=0.0) for each in detectors])
        ratios = np.array(times[5:])
        low, median, high = np.quantile(ratios / ratios[:, :1], (0.25, 0.5, 0.75), axis=0)
        for i, name in enumerate(names):
            self.keep(name, {"time": median[i], "spread": (high[i] - low[i]) / 2})


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Render the tables of AP and time, without what was not measured."""
    titles = {"pytorch": "PyTorch", **{name: title for name, (title, *_) in FORMS.items()}}
    columns: dict[str, Callable[[dict[str, float]], str]] = {
        "box AP / mask AP": lambda row: " / ".join(f"{row[kind]:.2f}" for kind in LIMITS if kind in row),
        "time": lambda row: f"{row['time']:.2f}" if "time" in row else "–",
    }
    tables = []
    for title, cell in columns.items():
        lines = [[title, *titles.values()]]
        for family, by_form in results.items():
            if by_form:
                cells = (cell(by_form[name]) if name in by_form else "–" for name in titles)
                lines.append([family, *cells])
        tables.append(markdown(lines))
    rows = [row for by_form in results.values() for row in by_form.values() if "time" in row]
    spread = max((row["spread"] / row["time"] for row in rows), default=0)
    facts = {name: value for name, value in describe("onnxruntime", "openvino").items() if "load" not in name}
    tables.append(
        f"Largest spread of the times (half of the interquartile range): {spread:.0%}. {listed(facts)}."
    )
    return "\n\n".join(tables)


# Detectors of full size

MASKS = 5
LARGE = {
    "fruits, trained": "mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts",
    "Mask R-CNN R-50": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "Cascade Mask R-CNN R-50": "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "PointRend R-50": "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py",
    "Deformable DETR R-50": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
}
METHOD = f"""One image per call, from its array to the detections, one thread. The shipped detector sees a
photograph. The others have random weights, scaled for outputs of unit variance, and see noise of 800 × 1333
pixels; the `score_thr` of those with masks lets {MASKS} pass. PyTorch runs channels last, without fused
layers. The runtimes take turns; each ratio is the median over the rounds. *Same*: the share of detections
with the same class and an IoU of at least 0.8. Written by `python -m benchmarks.deployment --large`.
"""


def large(source: str) -> tuple[TorchDetector, np.ndarray]:
    """Return a detector, and a picture; if it predicts masks, it predicts :data:`MASKS` in the picture."""
    if not source.endswith(".py"):
        picture = cv2.imread(str(ROOT / "data/fruits_nuts/images/5.jpg"))[..., ::-1]
        return dcnzoo.load(source, device="cpu", fuse=False), np.ascontiguousarray(picture)
    picture = np.random.default_rng(0).integers(0, 256, (800, 1333, 3)).astype(np.uint8)
    detector = untrained(source)
    example = torch.from_numpy(np.ascontiguousarray(picture[:256, :256].transpose(2, 0, 1)))
    calibrate(detector.model, detector.model.data_preprocessor({"inputs": [example]})["inputs"])
    if not hasattr(detector.model, "roi_head"):
        return detector, picture
    settings = detector.model.roi_head.test_cfg
    settings.score_thr = 0.0
    scores = detector(picture, score_threshold=0.0).scores
    settings.score_thr = float(scores[MASKS - 1 : MASKS + 1].mean())
    number = len(detector(picture, score_threshold=0.0))
    if number != MASKS:  # for example, where several scores are equal
        raise RuntimeError(f"{source}: expected {MASKS} detections, got {number}")
    return detector, picture


def untrained(source: str) -> TorchDetector:
    """Build the detector of a config in MMDetection."""
    cfg = Config.fromfile(MMDET / source)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    return TorchDetector(execute.build(Recipe(cfg)), fuse=False)


def measure_large(rounds: int) -> list[list[object]]:
    """Return a table of the large detectors' times in each runtime, relative to PyTorch."""
    rows = [["detector", "objects", "runtime", "seconds", "time / PyTorch", "quartiles", "same"]]
    for name, source in LARGE.items():
        detector, picture = large(source)
        detector.score_threshold = 0.0
        with TemporaryDirectory() as folder:
            result = detector.export(Path(folder, "model.onnx"))
            detectors = {"PyTorch": detector}
            for runtime in ("onnxruntime", "openvino"):
                detectors[runtime] = result.load(backend=runtime, threads=1, score_threshold=0.0)
            timings = measure(detectors, [picture], rounds)
        first = timings["PyTorch"]
        for runtime, timing in timings.items():
            figures = [f"{timing.median:.3f}", *relative(timing.seconds, first.seconds)]
            same = f"{agreement(first.results, timing.results):.0%}"
            rows.append([name, len(timing.results[0]), runtime, *figures, same])
            print(*rows[-1], sep=" | ", flush=True)
    return rows


# Seconds of an export

EXPORTED = {"Mask R-CNN R-14, shipped": "mask-rcnn_r14-mdconv_fpn_8e_shapes"}
EXPORTED |= {name: LARGE[name] for name in ("Mask R-CNN R-50", "Deformable DETR R-50")}
SIZE = 512, 640
STEPS = {  # of an export
    (torch.export, "export"): "tracing",
    (torch.export.ExportedProgram, "run_decompositions"): "torch.onnx.export: decompositions",
    (torch.onnx.ONNXProgram, "optimize"): "its optimiser",
}


class Network(nn.Module):
    """The layers of a detector, without its post-processing: a two-stage one also maps features of RoIs."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, *rois: Tensor) -> list[Tensor]:
        detector = self.detector
        with ThreadChanges() as changes, SymbolicSizes():
            rules.apply(changes)
            features = detector.extract_feat(images)
            if rois:
                head = detector.roi_head
                outputs = detector.rpn_head(features), head.bbox_head(rois[0]), head.mask_head(rois[1])
                return tree_leaves(outputs)
            padded = images.shape[-2:]
            sizes = tensor_of(padded, dtype=torch.long).expand(images.shape[0], 2).unbind(1)
            inputs = detector.forward_transformer(features, [data_sample(sizes, padded)])
            return tree_leaves(detector.bbox_head(**inputs))


def export_network(detector: nn.Module, path: Path, dynamic: bool) -> None:
    """Write the layers of a detector by torch's functions alone."""
    args = [torch.zeros(2 if dynamic else 1, 3, *SIZE)]
    shapes: list = [dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC) if dynamic else {}]
    for part in ("bbox", "mask") if hasattr(detector, "roi_head") else ():
        extractor = getattr(detector.roi_head, f"{part}_roi_extractor")
        args.append(torch.zeros(100, extractor.out_channels, *extractor.roi_layers[0].output_size))
    if args[1:]:
        shapes.append(({},) * len(args[1:]))
    with torch.no_grad():
        options = dict(dynamic_shapes=tuple(shapes), strict=False)
        program = torch.export.export(Network(own_copy(detector)), tuple(args), **options)
        remove_assertions(program)
        options = dict(opset_version=19, custom_translation_table=translation_table(19), verbose=False)
        torch.onnx.export(program, f=path, external_data=False, **options)


def measure_export(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield the rows of a table: CPU seconds of an export and of the network alone, by turns."""
    titles = "detector", "input", "network, s", "export, s", "export / network", "dynamic / fixed"
    yield [*titles, *STEPS.values()]
    with TemporaryDirectory() as folder, Changes() as changes:
        path, steps = Path(folder, "model.onnx"), dict.fromkeys(STEPS, 0.0)

        def step(original: Callable, *arguments: Any, name: str, **options: Any) -> Any:
            start = time.process_time()
            result = original(*arguments, **options)
            steps[name] += time.process_time() - start
            return result

        for place in STEPS:
            changes.wrap(*place, partial(step, name=place))
        dcnzoo.export.export_onnx(nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 9, 9),), path)  # imports
        for name in names or EXPORTED:
            source = EXPORTED[name]
            detector = untrained(source) if source.endswith(".py") else dcnzoo.load(source, device="cpu")
            fixed: list[float] = []
            for dynamic in (False, True):
                network = cpu_seconds(export_network, detector.model, path.with_stem("network"), dynamic)
                steps.update(dict.fromkeys(STEPS, 0.0))
                export = cpu_seconds(detector.export, path, shape=None if dynamic else SIZE, force=True)
                fixed = fixed or [network, export]
                ratios = [f"{now / before:.2f}" for now, before in zip((network, export), fixed, strict=True)]
                shares = (f"{seconds / export:.0%}" for seconds in steps.values())
                figures = f"{network:.1f}", f"{export:.1f}", f"{export / network:.2f}", " and ".join(ratios)
                yield [name, "dynamic" if dynamic else "fixed", *figures, *shares]


def cpu_seconds(function: Callable, *arguments: object, **options: object) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    function(*arguments, **options)
    return time.process_time() - start


def too_much(row: Row) -> Iterator[str]:
    """Yield the cases in which a runtime changes AP in float32 by more than the limit."""
    results = row.results
    for name in results.keys() & {name for name, (*_, form) in FORMS.items() if form == "float32"}:
        for kind, limit in LIMITS.items():
            ap, expected = results[name].get(kind, 0), results["pytorch"].get(kind, 0)
            if abs(ap - expected) > limit:
                yield f"{row.name}, {name}: {kind} AP {ap:.2f}, {expected:.2f} in PyTorch"


def main() -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    known = f"{', '.join(FAMILIES)}; for --export, {', '.join(EXPORTED)}"
    add("families", nargs="*", metavar="FAMILY", help=f"{known} (default: all)")
    add("--work-dir", type=Path, default=Path("work_dirs/deployment"), metavar="FOLDER")
    add("--write", action="store_true", help="write the tables to docs/benchmarks/exported_detectors.md")
    add("--large", action="store_true", help="measure large detectors, and write their page")
    add("--export", action="store_true", help="measure the CPU seconds of exports, and write them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.large:
        write_page("deployment", "Exported detectors of full size", {}, partial(measure_large, 7), METHOD)
        return
    if args.export:
        rows = []
        for row in measure_export(args.families):
            print(*row, sep=" | ", flush=True)
            rows.append(row)
        if not args.families:
            text = f"{markdown(rows)}\n\n{listed(describe('onnx', 'onnxscript'))}."
            replace_section(ROOT / "docs/benchmarks/exported_detectors.md", "seconds", text)
        return
    rows = [Row(name, args.work_dir) for name in FAMILIES]
    wrong = []
    for row in rows:
        if row.name in (args.families or FAMILIES):
            try:
                row.run()
            except (Exception, SystemExit) as error:  # does not stop the other families
                wrong.append(f"{row.name}: {error}")
        wrong += too_much(row)
    text = table({row.name: row.results for row in rows})
    print(text)
    if args.write:
        replace_section(ROOT / "docs/benchmarks/exported_detectors.md", "deployment", text)
    if wrong:
        raise SystemExit("error: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
