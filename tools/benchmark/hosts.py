"""Time complete models of other packages alternately with their own operators and with dcnzoo's.

Models have random weights, batch size 1 and float32. A training step is forward and backward of the sum of
the outputs, without a matcher and an optimiser (MMDetection: of the losses, with the matcher).
`make test-others` creates the environments:

\b
    .venv-transformers/bin/python tools/benchmark/hosts.py
    .venv-others/bin/python tools/benchmark/hosts.py --case BiRefNet MMDetection

Prints the results and writes them to docs/benchmarks/hosts-….md.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import report
import torch
from machine import cores, describe, slug
from measure import Effort, Runner, Timing, take_turns
from rich.console import Console
from torch import Tensor, nn

from dcnzoo.cli import one_line_errors
from dcnzoo.cli._options import FOLDER, Command, option
from dcnzoo.compat import patches, torchvision, transformers
from dcnzoo.utils.progress import make_progress

ROOT = Path(__file__).resolve().parents[2]
PASSES = ("inference", "training step")
SWIN_T = {
    "model_type": "swin",
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "drop_path_rate": 0.0,
}


@dataclass(frozen=True)
class Host:
    """A model of Transformers in its published size.

    Attributes:
        switches: functions that select the model's own operators, and dcnzoo's.
        cls: name of its class in transformers.
        size: height and width of the image.
        config: settings that its default configuration lacks.
        outputs: names of the outputs that a training step sums.
        text: token ids, for a model with text input.
    """

    cls: str
    size: tuple[int, int]
    config: dict[str, object]
    outputs: tuple[str, ...] = ("logits", "pred_boxes")
    text: tuple[int, ...] = ()
    package = "transformers"
    switches = (transformers.disable, transformers.enable)

    def build(self) -> nn.Module:
        import transformers

        cls = getattr(transformers, self.cls)
        return cls(cls.config_class(**self.config))

    def inputs(self) -> dict[str, Tensor]:
        inputs = {"pixel_values": torch.randn(1, 3, *self.size)}
        if self.text:
            inputs["input_ids"] = torch.tensor([self.text])
        return inputs

    def as_vector(self, results: dict[str, Tensor]) -> Tensor:
        return torch.cat([results[name].flatten() for name in self.outputs])


class Segmentation:
    """The network of the tests that resembles BiRefNet, which calls torchvision; see :class:`Host`."""

    package = "torchvision"
    switches = (torchvision.restore, torchvision.accelerate)

    def __init__(self, size: int) -> None:
        self.size = size

    def build(self) -> nn.Module:
        sys.path.insert(0, str(ROOT))
        from tests.environments.segmentation import Segmenter

        return Segmenter()

    def inputs(self) -> dict[str, Tensor]:
        return {"image": torch.randn(1, 3, self.size, self.size)}

    def as_vector(self, results: Tensor) -> Tensor:
        return results.flatten()


class Detector(nn.Module):
    """A detector of MMDetection that returns its losses during training, its only output then."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, inputs: Tensor, data_samples: list) -> tuple[Tensor, ...]:
        if not self.training:
            return self.detector(inputs, data_samples)
        losses = self.detector(inputs, data_samples, mode="loss")
        return tuple(value for name, value in losses.items() if "loss" in name)


class MMDetection:
    """A detector of MMDetection; its own operator is mmcv's function for the CPU. See :class:`Host`."""

    package = "mmdet"
    switches = tuple(
        partial(switch, "multi_scale_deform_attn") for switch in (patches.disable, patches.enable)
    )

    def __init__(self, config: str, size: tuple[int, int]) -> None:
        self.config, self.size = config, size

    def build(self) -> nn.Module:
        import dcnzoo.models  # noqa: F401

        # isort: split
        from mmdet.registry import MODELS
        from mmengine.hub import get_config
        from mmengine.registry import init_default_scope

        init_default_scope("mmdet")
        model = get_config(f"mmdet::{self.config}").model
        model.backbone.init_cfg = None
        return Detector(MODELS.build(model))

    def inputs(self) -> dict[str, object]:
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        height, width = self.size
        corners = torch.rand(10, 2) * torch.tensor([width / 2, height / 2])
        objects = InstanceData(bboxes=torch.cat([corners, corners + 100], dim=1), labels=torch.arange(10))
        sample = DetDataSample(metainfo={"img_shape": self.size, "batch_input_shape": self.size})
        sample.gt_instances = objects
        return {"inputs": torch.randn(1, 3, *self.size), "data_samples": [sample]}

    def as_vector(self, results: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in results])


RESNET_50 = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
HOSTS: dict[str, Host | MMDetection | Segmentation] = {
    "Deformable DETR R-50, 800×1066": Host(
        "DeformableDetrForObjectDetection", (800, 1066), {"backbone_config": RESNET_50}
    ),
    "Grounding DINO Swin-T, 800×1066": Host(
        "GroundingDinoForObjectDetection",
        (800, 1066),
        {"backbone_config": SWIN_T | {"out_features": ["stage2", "stage3", "stage4"]}},
        text=(101, 1037, 4937, 1012, 1037, 6556, 2491, 1012, 102),  # a cat. a remote control.
    ),
    "Mask2Former Swin-T, 800×1066": Host(
        "Mask2FormerForUniversalSegmentation",
        (800, 1066),
        {"backbone_config": SWIN_T | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}},
        ("class_queries_logits", "masks_queries_logits"),
    ),
    "RT-DETR R-50, 640×640": Host("RTDetrForObjectDetection", (640, 640), {}),
    "DINO R-50 of MMDetection, 800×1066": MMDetection("dino/dino-4scale_r50_8xb2-12e_coco.py", (800, 1066)),
    "BiRefNet-like, Swin-T, 1024×1024": Segmentation(1024),
}


@dataclass
class Switched(Runner):
    """A runner with a switch that is set before each call, outside the timing."""

    switch: Callable[[], None] = field(kw_only=True)

    def warm_up(self) -> None:
        self.switch()
        self.run()

    def sample(self) -> None:
        self.switch()
        super().sample()


@dataclass(frozen=True)
class Row:
    model: str
    mode: str
    eager: list[float]  # seconds of each round
    dcnzoo: list[float]
    difference: float  # largest difference between the outputs

    def cells(self) -> list[str]:
        eager, dcnzoo = (Timing.of(samples).median for samples in (self.eager, self.dcnzoo))
        ratio = Timing.of([before / after for before, after in zip(self.eager, self.dcnzoo, strict=True)])
        ratios = [f"{ratio.median:.2f}", f"{ratio.low:.2f} – {ratio.high:.2f}"]
        return [self.model, self.mode, f"{eager:.2f}", f"{dcnzoo:.2f}", *ratios, f"{self.difference:.0e}"]


def make_step(host: Host | MMDetection | Segmentation, mode: str) -> Callable[[], Tensor]:
    """Return the function to time. It returns the outputs as one vector."""
    torch.manual_seed(0)
    model, inputs = host.build().train(mode != "inference"), host.inputs()

    def step() -> Tensor:
        torch.manual_seed(0)  # dropout
        with torch.set_grad_enabled(mode != "inference"):
            outputs = host.as_vector(model(**inputs))
            outputs = outputs[outputs.isfinite()]  # Grounding DINO's logits for missing tokens are -inf
            if mode != "inference":
                model.zero_grad()
                outputs.sum().backward()
        return outputs.detach()

    return step


def measure(name: str, mode: str, rounds: int, threads: int, advance: Callable[[], None]) -> Row:
    step = make_step(HOSTS[name], mode)
    disable, enable = HOSTS[name].switches
    switches = {"eager": disable, "dcnzoo": enable}
    outputs: dict[str, Tensor] = {}
    runners = {}
    for contestant, switch in switches.items():

        def run(contestant: str = contestant) -> None:
            outputs[contestant] = step()

        runners[contestant] = Switched(run, threads, "cpu", switch=switch)
        runners[contestant].warm_up()
    for _ in take_turns(runners, Effort(0, rounds, rounds)):
        advance()
    disable()
    difference = (outputs["eager"] - outputs["dcnzoo"]).abs().max().item()
    return Row(name, mode, runners["eager"].samples, runners["dcnzoo"].samples, difference)


def cells(rows: list[Row]) -> list[list[str]]:
    """Return a table: a row of headings, then the rows."""
    head = ["model", "pass", "eager, s", "dcnzoo, s", "eager / dcnzoo", "quartiles", "difference"]
    return [head, *(row.cells() for row in rows)]


def page(facts: dict[str, object], rows: list[Row]) -> bytes:
    text = f"""\
# Complete models of other packages

{", ".join(f"{key} {value}" for key, value in facts.items())}.

Float32, batch size 1, random weights. A training step is forward and backward of the sum of the outputs,
without a matcher and an optimiser (MMDetection: of the losses, with the matcher). Seconds are medians. A
ratio compares the two samples of one round; the table shows the median and the quartiles. *difference* is
the largest difference between the outputs. DINO selects its queries by score: with random weights, rounding
changes their order. Other work on the machine slows both samples of a round. If `load_average_before` is not
near 0, use only the ratios.
Written by `python tools/benchmark/hosts.py`.

{report.markdown(cells(rows))}
"""
    return text.encode()


@click.command(cls=Command, help=__doc__)
@option(
    "--case", several=True, metavar="TEXT...", help="Models whose names contain one of these (default: all)."
)
@option("--rounds", type=click.IntRange(min=1), default=5, help="Number of samples, after a warm-up.")
@option("--threads", type=click.IntRange(min=1, max=cores()), default=min(2, cores()))
@option("--out", type=FOLDER, help="Default: docs/benchmarks (with --case work_dirs/benchmarks).")
@one_line_errors()
def main(case: tuple[str, ...], rounds: int, threads: int, out: Path | None) -> None:
    names = [name for name in HOSTS if not case or any(text.lower() in name.lower() for text in case)]
    names = [name for name in names if case or HOSTS[name].package == "transformers"]
    if not names:
        raise click.UsageError(f"--case: expected a part of {', '.join(HOSTS)}; got {', '.join(case)}")
    torch.set_num_threads(threads)
    facts = describe("cpu") | {
        **{
            package: importlib.metadata.version(package)
            for package in {HOSTS[name].package for name in names}
        },
        "threads": threads,
        "load_average_before": round(os.getloadavg()[0], 1),
    }
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    rows: list[Row] = []
    with make_progress(console, disable=not console.is_terminal) as bar:
        for name, mode in itertools.product(names, PASSES):
            task = bar.add_task(f"{name}, {mode}", total=2 * rounds, note="")
            rows.append(measure(name, mode, rounds, threads, lambda task=task: bar.advance(task)))
            bar.console.print(", ".join(rows[-1].cells()), highlight=False)
    report.show("Complete models", cells(rows), console, text_columns=2)
    folder = out or ROOT / ("work_dirs" if case else "docs") / "benchmarks"
    for path in report.write(folder, f"hosts-{slug(facts)}", {".md": page(facts, rows)}):
        console.print(f"written: {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
