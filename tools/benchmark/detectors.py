"""Time complete detectors of MMDetection: with dcnzoo, with mmcv's compiled operators, and without DCN.

Each contestant is a process with random weights and one image of 800 × 1344 pixels; the processes alternate.
A training step is losses and backward, without the optimiser. `make peers` creates the environment with the
compiled mmcv:

\b
    python tools/benchmark/detectors.py

Prints the results and writes them to docs/benchmarks/detectors-….md.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import report
from json_server import JsonServer
from machine import cores, describe, slug
from measure import Timing
from rich.console import Console

from dcnzoo.cli import one_line_errors
from dcnzoo.cli._options import FILE, FOLDER, Command, option
from dcnzoo.utils.errors import user_errors
from dcnzoo.utils.progress import make_progress

ROOT = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).with_name("detector_server.py")
PASSES = ("inference", "training step")


@dataclass(frozen=True)
class Contestant:
    """A detector in a process of its own.

    Attributes:
        plugin: uses dcnzoo, not mmcv's compiled operators.
        channels_last: has its weights in channels-last order.
    """

    config: str
    plugin: bool = True
    channels_last: bool = False


def _with_dcn(deformable: str, plain: str) -> dict[str, Contestant]:
    return {
        "dcnzoo": Contestant(deformable),
        "compiled mmcv": Contestant(deformable, plugin=False),
        "without DCN": Contestant(plain),
        "dcnzoo, channels last": Contestant(deformable, channels_last=True),
        "without DCN, channels last": Contestant(plain, channels_last=True),
    }


_DETR = "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py"
_INTERN = str(ROOT / "configs/internimage/mask-rcnn_internimage-t_fpn_1x_coco.py")
_FCOS = "mmdet::fcos/fcos_r50{}-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py"
DETECTORS = {
    "Mask R-CNN R-50, DCNv2": _with_dcn(
        "mmdet::dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
        "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    ),
    "FCOS R-50, DCN": _with_dcn(_FCOS.format("-dcn"), _FCOS.format("")),
    "Deformable DETR R-50": {"dcnzoo": Contestant(_DETR), "compiled mmcv": Contestant(_DETR, plugin=False)},
    "Mask R-CNN InternImage-T": {"dcnzoo": Contestant(_INTERN)},  # mmcv has no DCNv3
}


def measure(
    contestants: dict[str, Contestant], peers: Path, rounds: int, threads: int
) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Return the answers of each pass and contestant, one per round."""
    answers = defaultdict(list)
    with ExitStack() as stack:
        servers = {}
        for name, each in contestants.items():
            python = Path(sys.executable) if each.plugin else peers
            request = json.dumps([each.config, threads, each.plugin, each.channels_last])
            servers[name] = stack.enter_context(JsonServer([python, SERVER, request]))
        for mode in PASSES:
            for number in range(rounds + 1):
                for name, server in servers.items():
                    answer = server.ask(mode)
                    if number:  # the first round warms up
                        answers[mode, name].append(answer)
    return answers


def cells(detector: str, answers: dict[tuple[str, str], list[dict[str, float]]]) -> list[list[str]]:
    """Return a row for each pass and contestant."""
    rows = []
    for (mode, name), own in answers.items():
        seconds = [answer["seconds"] for answer in own]
        ours = [answer["seconds"] for answer in answers[mode, "dcnzoo"]]
        ratio = Timing.of([theirs / mine for theirs, mine in zip(seconds, ours, strict=True)])
        rows.append(
            [
                detector,
                mode,
                name,
                f"{Timing.of(seconds).median:.2f}",
                f"{ratio.median:.2f}",
                f"{ratio.low:.2f} – {ratio.high:.2f}",
                f"{max(answer['memory'] for answer in own) / 2**20:,.0f}",
            ]
        )
    return rows


HEAD = ["detector", "pass", "operators", "seconds", "time / dcnzoo", "quartiles", "peak memory, MiB"]


def page(facts: dict[str, object], rows: list[list[str]]) -> bytes:
    return f"""\
# Complete detectors

{", ".join(f"{key} {value}" for key, value in facts.items())}.

Float32, one image of 800 × 1344 pixels, random weights. A training step is losses and backward, without the
optimiser. The contestants are processes that alternate. Seconds are medians. A ratio compares the two samples
of one round; the table shows the median and the quartiles. The memory is the peak of the process, in addition
to the model and the libraries. If `load_average_before` is not near 0, use only the ratios.
Written by `python tools/benchmark/detectors.py`.

{report.markdown([HEAD, *rows])}
""".encode()


@click.command(cls=Command, help=__doc__)
@option("--case", several=True, metavar="TEXT...", help="Detectors whose names contain one of these.")
@option("--rounds", type=click.IntRange(min=1), default=5, help="Number of samples, after a warm-up.")
@option("--threads", type=click.IntRange(min=1, max=cores()), default=min(2, cores()))
@option("--peers", type=FILE, default=ROOT / ".venv-peers/bin/python", help="Python with compiled mmcv.")
@option("--out", type=FOLDER, help="Default: docs/benchmarks (with --case work_dirs/benchmarks).")
@one_line_errors()
def main(case: tuple[str, ...], rounds: int, threads: int, peers: Path, out: Path | None) -> None:
    names = [name for name in DETECTORS if not case or any(text.lower() in name.lower() for text in case)]
    if not names:
        raise click.UsageError(f"--case: expected a part of {', '.join(DETECTORS)}; got {', '.join(case)}")
    if not peers.exists():
        raise click.UsageError(
            f"--peers: expected a Python with compiled mmcv, found none at {peers}: make peers"
        )
    facts = describe("cpu") | {
        "threads": threads,
        "rounds": rounds,
        "load_average_before": round(os.getloadavg()[0], 1),
    }
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    folder = out or ROOT / ("work_dirs" if case else "docs") / "benchmarks"
    rows: list[list[str]] = []
    with make_progress(console, disable=not console.is_terminal) as bar:
        for name in bar.track(names):
            with user_errors():
                rows += cells(name, measure(DETECTORS[name], peers, rounds, threads))
            # after each detector: a run takes a quarter of an hour
            (path,) = report.write(folder, f"detectors-{slug(facts)}", {".md": page(facts, rows)})
    report.show("Complete detectors", [HEAD, *rows], console, text_columns=3)
    console.print(f"written: {path}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
