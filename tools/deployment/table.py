"""Measure how exporting changes the average precision of each family: PyTorch compared with each backend."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import click

import dcnzoo.models

# after dcnzoo.models, which patches packages that these import
# isort: split
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from small_detectors import FAMILIES, MMDET, ROOT, small

import dcnzoo.openmmlab.datasets
import dcnzoo.openmmlab.export.deployed  # noqa: F401  registers DeployedDetector
from dcnzoo.cli import one_line_errors
from dcnzoo.cli._options import FOLDER, Command, option
from dcnzoo.openmmlab.detector import build
from dcnzoo.utils.errors import UserError, one_line, user_errors
from dcnzoo.utils.files import write_text
from dcnzoo.utils.progress import make_progress

BACKENDS = ("onnxruntime", "openvino")
LIMITS = {"bbox": 0.1, "segm": 0.3}  # largest difference in AP points
PAGE = ROOT / "docs/deployment.md"
BEGIN, END = "<!-- table.py: begin -->", "<!-- table.py: end -->"
KINDS = {"bbox": "box", "segm": "mask"}


class Steps(Hook):
    """Moves a progress bar with a runner's iterations."""

    def __init__(self, move: Callable[[], None]) -> None:
        self.move = move

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.move()

    after_test_iter = after_train_iter


class Row:
    """One family: its config, its folder and its results."""

    def __init__(self, name: str, args: SimpleNamespace) -> None:
        self.name, self.family = name, FAMILIES[name]
        data = "coco" if args.coco else "quick" if args.quick else "shapes"
        self.folder = args.work_dir / data / name.lower().replace(" ", "-")
        self.coco = args.coco
        self.cfg = self._published() if args.coco else self._small(args)
        self.fingerprint = hashlib.sha256(self.cfg.pretty_text.encode()).hexdigest()
        self.force = args.force
        self.cfg.work_dir = str(self.folder / "logs")

    def _small(self, args: SimpleNamespace) -> Config:
        cfg = small(self.name)
        shapes = dict(train=640, val=256, seed=0)
        if args.quick:
            shapes.update(train=16, val=8)
            cfg.train_cfg.max_epochs = 1
        data = args.work_dir / ("quick/data" if args.quick else "data")
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            loader.dataset.update(data_root=f"{data}/", shapes=shapes)
        cfg.test_evaluator.ann_file = str(data / "annotations/val.json")
        cfg.log_level = "ERROR"
        return cfg

    def _published(self) -> Config:
        cfg = Config.fromfile(MMDET / self.family.config)
        dataset = cfg.test_dataloader.dataset
        dataset.data_root = f"{self.coco}/"
        cfg.test_dataloader.update(batch_size=1, num_workers=2)
        cfg.test_evaluator.ann_file = str(self.coco / dataset.ann_file)
        cfg.test_evaluator.metric = list(self.family.kinds)
        cfg.log_level = "ERROR"
        return cfg

    def _state(self) -> dict:
        try:
            return json.loads((self.folder / "table.json").read_text())
        except (OSError, json.JSONDecodeError):
            return {}

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """AP in points: backend → kind → AP."""
        state = self._state()
        return state["results"] if state.get("fingerprint") == self.fingerprint else {}

    def keep(self, what: str, ap: dict[str, float]) -> None:
        results = {**self.results, **({what: ap} if what else {})}
        state = {"fingerprint": self.fingerprint, "results": results}
        write_text(self.folder / "table.json", json.dumps(state))

    @property
    def weights(self) -> Path:
        if self.coco:
            from dcnzoo.zoo import download

            return Path(download(Path(self.family.config).stem))
        return self.folder / "logs" / f"epoch_{self.cfg.train_cfg.max_epochs}.pth"

    def run(self, backends: Sequence[str], move: Callable[[str, float], None]) -> None:
        """Run the missing steps; report the current step and its progress to ``move``."""
        if self.force or self._state().get("fingerprint") != self.fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.keep("", {})
        if not self.coco and not self.weights.exists():
            self._train(move)
        if "pytorch" not in self.results:
            self.keep("pytorch", self._evaluate(self.cfg.model, "pytorch", move, self.weights))
        for backend in backends:
            if backend in self.results or (backend == "openvino" and not self.family.openvino):
                continue
            path = self.folder / "model.onnx"
            if not path.exists():
                move("export", 0)
                self._export(path)
            model = dict(
                type="DeployedDetector", path=str(path), backend=backend, device="cpu",
                data_preprocessor=self.cfg.model.data_preprocessor,
            )  # fmt: skip
            self.keep(backend, self._evaluate(model, backend, move))

    def _train(self, move: Callable[[str, float], None]) -> None:
        cfg = Config(self.cfg.to_dict())
        cfg.resume = True  # resumes an interrupted training
        runner = Runner.from_cfg(cfg)
        runner.register_hook(
            Steps(lambda: move("train", (runner.iter + 1) / runner.max_iters)), priority="LOWEST"
        )
        runner.train()

    def _export(self, path: Path) -> None:
        from dcnzoo.openmmlab.export.detectors import export_detector

        detector, _ = build(copy.deepcopy(self.cfg), self.weights)  # building modifies DETR's config
        size = (800, 1216) if self.coco else (128, 128)
        export_detector(detector, torch.randn(1, 3, *size), path, dynamic=True)

    def _evaluate(
        self, model: dict, what: str, move: Callable[[str, float], None], weights: Path | None = None
    ) -> dict[str, float]:
        cfg = Config(self.cfg.to_dict())
        cfg.model, cfg.resume = copy.deepcopy(model), False
        cfg.load_from = weights and str(weights)
        prefix = self.folder / what
        cfg.test_evaluator.update(format_only=True, outfile_prefix=str(prefix))
        runner = Runner.from_cfg(cfg)
        steps = iter(range(1, 10**9))
        runner.register_hook(Steps(lambda: move(what, next(steps) / len(runner.test_dataloader))))
        runner.test()
        return {
            kind: average_precision(cfg.test_evaluator.ann_file, f"{prefix}.{kind}.json", kind)
            for kind in self.family.kinds
        }


def average_precision(annotations: str, results: str, kind: str) -> float:
    """Compute COCO's AP in points, unrounded: MMDetection's metric rounds by as much as the limit."""
    if not json.loads(Path(results).read_text()):
        return 0.0  # no detections, for which pycocotools fails
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def markdown(results: dict[str, dict[str, dict[str, float]]], backends: Sequence[str]) -> str:
    """Render the table; missing results are dashes."""
    import onnxruntime

    versions = [f"PyTorch {torch.__version__}", f"onnxruntime {onnxruntime.__version__}"]
    if "openvino" in backends:
        import openvino

        versions.append(f"OpenVINO {openvino.__version__.split('-')[0]}")
    names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    head = ["", "AP", "PyTorch", *(names[b] for b in backends), "largest difference"]
    head += [f"published: {name}" for name in ("PyTorch", "ONNX Runtime", "TensorRT")]
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for name, family in FAMILIES.items():
        for kind, published in family.published.items():
            found = results.get(name, {})
            measured = [found.get(what, {}).get(kind) for what in ("pytorch", *backends)]
            there = [value for value in measured[1:] if value is not None]
            lost = max((abs(value - measured[0]) for value in there), default=None)
            cells = [
                name if kind == "bbox" else "", KINDS[kind], *(_cell(value, 2) for value in measured),
                _cell(lost, 2), *(_cell(value, 1) for value in published),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{', '.join(versions)}; {platform.machine()}, CPU, float32."])


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def write(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    if END not in rest:
        raise UserError(f"{PAGE}: expected {BEGIN} and {END}, found at most one of them")
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def too_much(rows: list[Row]) -> list[str]:
    """List the cases in which a backend loses more than the limit."""
    return [
        f"{row.name}, {backend}: {KINDS[kind]} AP {value:.2f}, {row.results['pytorch'][kind]:.2f} in PyTorch"
        for row in rows
        for backend, found in row.results.items()
        for kind, value in found.items()
        if abs(value - row.results["pytorch"][kind]) > LIMITS[kind]
    ]


def measure(rows: list[Row], backends: Sequence[str], console: Console) -> list[str]:
    """Run all missing steps; return the errors, which do not stop the other families."""
    wrong = []
    with make_progress(console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(rows) * (2 + len(backends)), note="")
        for number, row in enumerate(rows):
            steps = ["train", "pytorch", *backends]

            def move(what: str, part: float, number: int = number, steps: list[str] = steps) -> None:
                step = steps.index(what.rpartition(" ")[2])
                done = number * len(steps) + step + part
                progress.update(task, completed=done, description=rows[number].name, note=what)

            try:
                row.run(backends, move)
                console.print(f"{row.name}: {json.dumps(row.results)}", soft_wrap=True)
            except Exception as error:
                wrong.append(f"{row.name}: {one_line(error)}")
                console.print(wrong[-1], soft_wrap=True)
    return wrong


@click.command(cls=Command)
@option("--families", several=True, type=click.Choice(list(FAMILIES)), metavar="FAMILY...",
        default=list(FAMILIES), help="Families in the table.")  # fmt: skip
@option("--backends", several=True, type=click.Choice(list(BACKENDS)), metavar="BACKEND...",
        default=list(BACKENDS), help="Runtimes to measure.")  # fmt: skip
@option("--work-dir", type=FOLDER, default="work_dirs/deployment", help="Folder for weights and results.")
@option("--quick", is_flag=True, help="Run with few images and one epoch, as a smoke test.")
@option("--force", is_flag=True, help="Repeat finished trainings and evaluations.")
@option("--coco", type=FOLDER, help="Folder of COCO's annotations/ and val2017/; downloads weights.")
@option("--report", is_flag=True, help="Show the existing results without measuring.")
@option("--write", "into_page", is_flag=True, help=f"Write the table to {PAGE.relative_to(ROOT)}.")
def main(
    families: tuple[str, ...], backends: tuple[str, ...], report: bool, into_page: bool, **options: object
) -> None:
    """Measure how exporting changes the average precision of each family of detectors.

    Trains a small detector of each family on the generated shapes, exports it, evaluates it in PyTorch and in
    each backend on the same images, and prints the table of docs/deployment.md, with published results.
    Finished steps are reused, so an interrupted run can be repeated. With --coco, uses MMDetection's configs,
    published weights and COCO's validation images instead.
    """
    args = SimpleNamespace(**options)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.coco and not (args.coco / "val2017").is_dir():
        raise UserError(f"--coco: expected a folder with val2017/, got {args.coco}")
    with user_errors():
        rows = [Row(name, args) for name, family in FAMILIES.items() if args.coco or family.epochs]
    chosen = [row for row in rows if row.name in families]
    wrong = [] if report else measure(chosen, backends, Console(highlight=False))
    text = markdown({row.name: row.results for row in rows}, backends)
    print(text)
    if into_page:
        write(text)
    wrong += too_much(rows)
    if wrong:
        raise UserError("; ".join(wrong))


if __name__ == "__main__":
    with one_line_errors():
        main()
