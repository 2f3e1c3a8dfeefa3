"""Measure AP, time and size of exported detectors of each family, beside PyTorch's."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import click

import dcnzoo.models

# after dcnzoo.models, which patches packages that these import
# isort: split
import numpy as np
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
from dcnzoo.export.openvino import save_ir
from dcnzoo.export.runtime import Session
from dcnzoo.export.smaller import to_float16, to_int8
from dcnzoo.openmmlab.export.detectors import deployable, export_detector
from dcnzoo.openmmlab.export.inputs import (
    CalibrationInputs,
    calibration_files,
    find_preprocessing,
    load_detector,
)
from dcnzoo.openmmlab.export.wrapper import data_sample
from dcnzoo.utils.errors import UserError, one_line, user_errors
from dcnzoo.utils.files import replacing, write_text
from dcnzoo.utils.progress import make_progress

LIMITS = {"bbox": 0.1, "segm": 0.3}  # largest difference in AP points in float32
GOAL = 0.5  # of AP lost in int8
CALIBRATION, CALLS = 100, 100  # images for int8, and calls whose time is measured
PAGE = ROOT / "docs/deployment.md"
BEGIN, END = "<!-- table.py: begin -->", "<!-- table.py: end -->"
KINDS = {"bbox": "box", "segm": "mask"}


@dataclasses.dataclass(frozen=True)
class Form:
    """An exported file, and the runtime that runs it."""

    title: str
    file: str
    backend: str
    float32: bool = False


FORMS = {
    "onnxruntime": Form("ONNX Runtime", "model.onnx", "onnxruntime", float32=True),
    "onnxruntime-fp16": Form("ONNX Runtime, `--fp16`", "fp16.onnx", "onnxruntime"),
    "onnxruntime-int8": Form("ONNX Runtime, `--int8`", "int8.onnx", "onnxruntime"),
    "openvino": Form("OpenVINO", "model.xml", "openvino", float32=True),
    "openvino-int8": Form("OpenVINO, `--int8`", "int8.xml", "openvino"),
}


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
        self.images = data / "train"
        for loader in (cfg.train_dataloader, cfg.test_dataloader):
            loader.dataset.update(data_root=f"{data}/", shapes=shapes)
        cfg.test_evaluator.ann_file = str(data / "annotations/val.json")
        cfg.log_level = "ERROR"
        return cfg

    def _published(self) -> Config:
        cfg = Config.fromfile(MMDET / self.family.config)
        dataset = cfg.test_dataloader.dataset
        dataset.data_root = f"{self.coco}/"
        self.images = self.coco / "train2017"
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
        """The results of PyTorch and each form: AP in points by kind, size in bytes, time of a call."""
        state = self._state()
        return state["results"] if state.get("fingerprint") == self.fingerprint else {}

    def keep(self, what: dict[str, dict[str, float]]) -> None:
        old = self.results
        results = {**old, **{name: {**old.get(name, {}), **found} for name, found in what.items()}}
        state = {"fingerprint": self.fingerprint, "results": results}
        write_text(self.folder / "table.json", json.dumps(state))

    @property
    def weights(self) -> Path:
        if self.coco:
            from dcnzoo.zoo import download

            return Path(download(Path(self.family.config).stem))
        return self.folder / "logs" / f"epoch_{self.cfg.train_cfg.max_epochs}.pth"

    @functools.cached_property
    def detector(self) -> torch.nn.Module:
        self.cfg.dump(self.folder / "config.py")
        return load_detector(self.folder / "config.py", self.weights)[1]

    @functools.cached_property
    def samples(self) -> CalibrationInputs:
        """Inputs of the training images."""
        files = calibration_files(self.images, CALIBRATION)
        found, names = find_preprocessing(self.cfg, self.detector), deployable(self.detector).input_names
        return CalibrationInputs(self.detector, found, files, None, names)

    def run(self, forms: Sequence[str], move: Callable[[str, float], None]) -> None:
        """Run the missing steps; report the current step and its progress to ``move``."""
        forms = [name for name in forms if self.family.openvino or FORMS[name].backend != "openvino"]
        if self.force or self._state().get("fingerprint") != self.fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.keep({})
        if not self.coco and not self.weights.exists():
            self._train(move)
        if "pytorch" not in self.results:
            ap = self._evaluate(self.cfg.model, "pytorch", move, self.weights)
            values = self.detector.state_dict().values()
            self.keep({"pytorch": {**ap, "size": sum(value.nbytes for value in values)}})
        for name in forms:
            if name not in self.results:
                move(name, 0)
                path = self._export(FORMS[name])
                model = dict(
                    type="DeployedDetector", path=str(path), backend=FORMS[name].backend, device="cpu",
                    data_preprocessor=self.cfg.model.data_preprocessor,
                )  # fmt: skip
                parts = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
                size = sum(part.stat().st_size for part in parts)
                self.keep({name: {**self._evaluate(model, name, move), "size": size}})
        if any("time" not in self.results[name] for name in ("pytorch", *forms)):
            self.keep(self._time(forms, move))

    def _train(self, move: Callable[[str, float], None]) -> None:
        cfg = Config(self.cfg.to_dict())
        cfg.resume = True  # resumes an interrupted training
        runner = Runner.from_cfg(cfg)
        runner.register_hook(
            Steps(lambda: move("train", (runner.iter + 1) / runner.max_iters)), priority="LOWEST"
        )
        runner.train()

    def _export(self, form: Form) -> Path:
        path, whole = self.folder / form.file, self.folder / "model.onnx"
        if path == whole or not whole.exists():
            size = (800, 1216) if self.coco else (128, 128)
            export_detector(self.detector, torch.randn(1, 3, *size), whole, dynamic=True)
        if path.suffix == ".xml":
            save_ir(whole, path, samples=[] if form.float32 else self.samples)
        elif path != whole:
            with replacing(path) as partial:
                shutil.copy(whole, partial)
                if "fp16" in form.file:
                    to_float16(partial)
                else:
                    to_int8(partial, self.samples)
        return path

    @torch.no_grad()
    def _time(self, forms: Sequence[str], move: Callable[[str, float], None]) -> dict[str, dict[str, float]]:
        """Measure the CPU time of a call relative to PyTorch's, by turns on the same images with one thread.

        Returns:
            the median of the ratios as ``time``, and half of their interquartile range as ``spread``.
        """

        def predict(images: np.ndarray, *_: np.ndarray) -> None:
            sizes = tuple(images.shape[2:])
            self.detector.predict(torch.from_numpy(images), [data_sample(sizes, sizes)], rescale=False)

        torch.set_num_threads(1)
        paths = {name: self.folder / FORMS[name].file for name in forms}
        runs = {name: Session(path, FORMS[name].backend, threads=1) for name, path in paths.items()}
        times = []
        for call in range(-5, CALLS):  # the first are warm-up
            move("time", max(call, 0) / CALLS)
            feed = self.samples[call % len(self.samples)].values()
            times.append([cpu_seconds(run, *feed) for run in (predict, *runs.values())])
        ratios = np.array(times[5:])
        low, median, high = np.quantile(ratios / ratios[:, :1], (0.25, 0.5, 0.75), axis=0)
        return {
            name: {"time": median[i], "spread": (high[i] - low[i]) / 2}
            for i, name in enumerate(("pytorch", *runs))
        }

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


def cpu_seconds(run: Callable[..., object], *args: np.ndarray) -> float:
    start = time.process_time()
    run(*args)
    return time.process_time() - start


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


def markdown(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Render the table, without what was not measured."""
    head = ["", "", "box AP", "mask AP", "time", "MiB"]
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for family, found in results.items():
        titles = {"pytorch": "PyTorch", **{name: form.title for name, form in FORMS.items()}}
        for name in [name for name in titles if name in found]:
            row = found[name]
            values = [row["bbox"], row.get("segm"), row.get("time"), row["size"] / 2**20]
            cells = [family if name == "pytorch" else "", titles[name], *map(_cell, values)]
            lines.append("| " + " | ".join(cells) + " |")
    rows = [row for found in results.values() for row in found.values() if "time" in row]
    spread = max((row["spread"] / row["time"] for row in rows), default=0)
    names = {"torch": "PyTorch", "onnxruntime": "onnxruntime", "openvino": "OpenVINO", "nncf": "nncf"}
    versions = ", ".join(f"{title} {version(package)}" for package, title in names.items())
    return "\n".join(
        [
            *lines,
            "",
            f"Largest spread of the times (half of the interquartile range): {100 * spread:.0f} %. "
            f"{versions}; {platform.machine()}, CPU.",
            "",
            *(f"- {text}" for text in int8_losses(results)),
        ]
    )


def int8_losses(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Describe where int8 loses more AP than the goal."""
    lines = []
    for name in ("onnxruntime-int8", "openvino-int8"):
        lost = {
            f"{family} ({KINDS[kind]})": found["pytorch"][kind] - found[name][kind]
            for family, found in results.items()
            for kind in KINDS
            if kind in found.get(name, {})
        }
        more = [f"{where} {value:.2f}" for where, value in lost.items() if value > GOAL]
        text = f"{FORMS[name].title} loses at most {GOAL} AP in {len(lost) - len(more)} of {len(lost)} cases"
        lines.append(f"{text}{'; more: ' if more else ''}{', '.join(more)}.")
    return lines


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def write(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    if END not in rest:
        raise UserError(f"{PAGE}: expected {BEGIN} and {END}, found at most one of them")
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def too_much(rows: list[Row]) -> list[str]:
    """List the cases in which a runtime changes AP in float32 by more than the limit."""
    wrong = []
    for row in rows:
        for name in row.results.keys() & {name for name, form in FORMS.items() if form.float32}:
            for kind in row.family.kinds:
                found, expected = row.results[name][kind], row.results["pytorch"][kind]
                if abs(found - expected) > LIMITS[kind]:
                    wrong.append(
                        f"{row.name}, {name}: {KINDS[kind]} AP {found:.2f}, {expected:.2f} in PyTorch"
                    )
    return wrong


def measure(rows: list[Row], forms: Sequence[str], console: Console) -> list[str]:
    """Run all missing steps; return the errors, which do not stop the other families."""
    wrong = []
    steps = ["train", "pytorch", *forms, "time"]
    with make_progress(console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(rows) * len(steps), note="")
        for number, row in enumerate(rows):

            def move(what: str, part: float, number: int = number) -> None:
                done = number * len(steps) + steps.index(what) + part
                progress.update(task, completed=done, description=rows[number].name, note=what)

            try:
                row.run(forms, move)
                console.print(f"{row.name}: {json.dumps(row.results)}", soft_wrap=True)
            except Exception as error:
                wrong.append(f"{row.name}: {one_line(error)}")
                console.print(wrong[-1], soft_wrap=True)
    return wrong


@click.command(cls=Command)
@option("--families", several=True, type=click.Choice(list(FAMILIES)), metavar="FAMILY...",
        default=list(FAMILIES), help="Families in the table.")  # fmt: skip
@option("--forms", several=True, type=click.Choice(list(FORMS)), metavar="FORM...",
        default=list(FORMS), help="Files and runtimes to measure.")  # fmt: skip
@option("--work-dir", type=FOLDER, default="work_dirs/deployment", help="Folder for weights and results.")
@option("--quick", is_flag=True, help="Run with few images and one epoch, as a smoke test.")
@option("--force", is_flag=True, help="Repeat finished trainings and evaluations.")
@option(
    "--coco", type=FOLDER, help="Folder of COCO's annotations/, train2017/ and val2017/; downloads weights."
)
@option("--report", is_flag=True, help="Show the existing results without measuring.")
@option("--write", "into_page", is_flag=True, help=f"Write the table to {PAGE.relative_to(ROOT)}.")
def main(
    families: tuple[str, ...], forms: tuple[str, ...], report: bool, into_page: bool, **options: object
) -> None:
    """Measure AP, time and size of exported detectors of each family.

    Trains a small detector of each family on the generated shapes, exports it in each form, evaluates it in
    PyTorch and in each form on the same images, and prints the table of docs/deployment.md.
    Finished steps are reused, so an interrupted run can be repeated. With --coco, uses MMDetection's configs,
    published weights and COCO's images instead.
    """
    args = SimpleNamespace(**options)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.coco and not all((args.coco / name).is_dir() for name in ("train2017", "val2017")):
        raise UserError(f"--coco: expected a folder with train2017/ and val2017/, got {args.coco}")
    with user_errors():
        rows = [Row(name, args) for name, family in FAMILIES.items() if args.coco or family.epochs]
    chosen = [row for row in rows if row.name in families]
    wrong = [] if report else measure(chosen, forms, Console(highlight=False))
    text = markdown({row.name: row.results for row in rows})
    print(text)
    if into_page:
        write(text)
    wrong += too_much(rows)
    if wrong:
        raise UserError("; ".join(wrong))


if __name__ == "__main__":
    with one_line_errors():
        main()
