"""Measure the zoo's detectors: parameters, operations, and CPU time relative to Faster R-CNN R-50.

Writes the entries that a model lacks to its metafile. The operations are those of the config's test size. The
CPU time is the median ratio on one thread, with random weights and 800 × 1333 pixels; the two models
alternate.
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
from dcnzoo.openmmlab.model_builder import build_model, count_operations, input_size, random_batch
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.utils.files import write_text
from dcnzoo.utils.progress import make_progress
from dcnzoo.zoo.page import CPU_TIME, FLOPS, PARAMETERS

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "faster-rcnn_r50_fpn_1x_coco"
SIZE = (800, 1333)
ENTRIES = (CPU_TIME, PARAMETERS, FLOPS)


@click.command(cls=_options.Command, help=__doc__)
@_options.option("--names", several=True, help="Models (default: dcnzoo's models that lack an entry).")
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@one_line_errors()
def main(names: tuple[str, ...], rounds: int) -> None:
    torch.set_num_threads(1)
    console = Console(highlight=False)
    chosen = [zoo.find(name) for name in names] or [
        model
        for model in zoo.models()
        if model.package == "dcnzoo"
        and model.config.parent.name != "demo"
        and not model.metadata.keys() >= set(ENTRIES)
    ]
    baseline = build_model(read_config_file(str(zoo.find(BASELINE).config), {}))
    measured: dict[str, dict[str, float]] = {}  # config of the model → entries; schedules share models
    with make_progress(console, disable=not console.is_terminal) as progress:
        for model in progress.track(chosen):
            cfg = read_config_file(str(model.config), {})
            key = repr(cfg.model)
            if key not in measured:
                rival = build_model(cfg)
                batch = random_batch(*input_size(cfg, rival))
                pairs = [(_seconds(rival), _seconds(baseline)) for _ in range(rounds + 1)][1:]
                measured[key] = {
                    CPU_TIME: round(statistics.median(ours / theirs for ours, theirs in pairs), 2),
                    PARAMETERS: round(sum(p.numel() for p in rival.parameters()) / 1e6, 1),
                    FLOPS: round(sum(count_operations(rival, batch)[0].values()) / 1e9, 1),
                }
            found = {name: measured[key][name] for name in ENTRIES if name not in model.metadata or names}
            _write(model, found)
            console.print(f"{model.name}: {found}", soft_wrap=True)


def _seconds(model: nn.Module) -> float:
    batch = random_batch(*SIZE)
    start = time.process_time()
    with torch.no_grad():
        model.test_step(batch)
    return time.process_time() - start


def _write(model: zoo.Model, entries: dict[str, float]) -> None:
    """Write the entries at the start of the model's metadata."""
    file = ROOT / "configs" / model.config.parent.name / "metafile.yml"
    metadata = re.compile(
        rf"(  - Name: {re.escape(model.name)}\n(?:    .*\n)*?    Metadata:\n)((?:      .*\n)*)", re.MULTILINE
    )

    def replaced(found: re.Match) -> str:
        first = [f"      {name}: {value}\n" for name, value in entries.items()]
        old = tuple(f"      {name}:" for name in entries)
        rest = [line for line in found[2].splitlines(keepends=True) if not line.startswith(old)]
        return found[1] + "".join([*first, *rest])

    write_text(file, metadata.sub(replaced, file.read_text(encoding="utf-8"), count=1))


if __name__ == "__main__":
    main()
