"""Measure CPU times of the zoo's detectors relative to Faster R-CNN R-50: ``CPU time`` in the metafiles.

Median ratio of CPU times of one thread, with random weights and 800 × 1333 pixels. The two models alternate.
"""

import re
import statistics
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from torch import nn

from dcnzoo import zoo
from dcnzoo.cli import _options, one_line_errors
from dcnzoo.openmmlab.model_builder import build_model, random_batch
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.utils.files import write_text
from dcnzoo.utils.progress import make_progress
from dcnzoo.zoo.page import CPU_TIME

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "faster-rcnn_r50_fpn_1x_coco"
SIZE = (800, 1333)


@click.command(cls=_options.Command, help=__doc__)
@_options.option("--names", several=True, help="Models (default: dcnzoo's models without this entry).")
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@one_line_errors()
def main(names: tuple[str, ...], rounds: int) -> None:
    torch.set_num_threads(1)
    console = Console(highlight=False)
    chosen = [zoo.find(name) for name in names] or [
        model
        for model in zoo.models()
        if model.package == "dcnzoo" and model.config.parent.name != "demo" and CPU_TIME not in model.metadata
    ]
    baseline = _build(zoo.find(BASELINE))
    with make_progress(console, disable=not console.is_terminal) as progress:
        for model in progress.track(chosen):
            rival = _build(model)
            pairs = [(_seconds(rival), _seconds(baseline)) for _ in range(rounds + 1)][1:]
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            _write(model, round(ratio, 2))
            console.print(f"{model.name}: {ratio:.2f}", soft_wrap=True)


def _build(model: zoo.Model) -> nn.Module:
    return build_model(read_config_file(str(model.config), {}))


def _seconds(model: nn.Module) -> float:
    batch = random_batch(*SIZE)
    start = time.process_time()
    with torch.no_grad():
        model.test_step(batch)
    return time.process_time() - start


def _write(model: zoo.Model, ratio: float) -> None:
    """Write the ratio as the first entry of the model's metadata."""
    file = ROOT / "configs" / model.config.parent.name / "metafile.yml"
    entry = re.compile(
        rf"(  - Name: {re.escape(model.name)}\n(?:    .*\n)*?    Metadata:\n)((?:      .*\n)*)", re.MULTILINE
    )

    def replaced(found: re.Match) -> str:
        rest = [
            line for line in found[2].splitlines(keepends=True) if not line.startswith(f"      {CPU_TIME}")
        ]
        return f"{found[1]}      {CPU_TIME}: {ratio}\n{''.join(rest)}"

    write_text(file, entry.sub(replaced, file.read_text(encoding="utf-8"), count=1))


if __name__ == "__main__":
    main()
