"""``dcnzoo bench``: time the operators (``tools/benchmark/ops.py``, in a clone) or an exported detector."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option
from dcnzoo.utils.errors import UserError

FOLDER = Path(__file__).parents[2] / "tools" / "benchmark"  # in a clone


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def command(options: tuple[str, ...]) -> None:
    """Time the operators or an exported detector.

    The operators are compared with other implementations; this needs a clone of dcnzoo.

    \b
    examples:
      dcnzoo bench --help
      dcnzoo bench model.onnx picture.jpg --threads 2
      dcnzoo bench model.onnx --help
    """
    if options and options[0].endswith((".onnx", ".xml", ".pt2")):
        bench_model.main(list(options), prog_name="dcnzoo bench", standalone_mode=False)
        return
    sys.argv = ["dcnzoo bench", *options]
    if not FOLDER.is_dir():
        raise UserError("bench: expected a clone of dcnzoo or an exported detector, got an installed package")
    sys.path.insert(0, str(FOLDER.resolve()))  # as Python does for a script
    importlib.import_module("ops").main(prog_name=sys.argv[0])


@click.command(cls=_options.Command)
@click.argument("model", type=click.Path())
@click.argument("images", nargs=-1, metavar="[IMAGE...]", type=click.Path())
@_options.backend("Runtime; an .xml file needs openvino, a .pt2 file aotinductor.")
@option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@option("--threads", type=click.IntRange(min=1), help="Number of CPU threads (default: the runtime's).")
@option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Images per call.")
@option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Duration of the measurement.",
)
def bench_model(
    model: str,
    images: tuple[str, ...],
    backend: str,
    device: str,
    threads: int | None,
    batch_size: int,
    seconds: float,
) -> None:
    """Time an exported detector from images in memory to detections, including resizing.

    Without IMAGE, use one image of noise, 640 × 480, which has few detections.
    """
    import numpy as np

    from dcnzoo.export.picture import read
    from dcnzoo.export.runtime import Detector
    from dcnzoo.utils.errors import user_errors

    with user_errors():
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
        pictures = [read(image) for image in images] or [noise]
        detector = Detector(model, backend, device, threads, batch_size)
    batch = [pictures[i % len(pictures)] for i in range(max(batch_size, len(pictures)))]
    detector(batch)  # warm-up
    samples: list[float] = []
    while sum(samples) < seconds or not samples:
        start = time.perf_counter()
        detector(batch)
        samples.append((time.perf_counter() - start) / len(batch))
    low, median, high = np.quantile(samples, (0.25, 0.5, 0.75))
    print(
        f"{1 / median:.2f} images per second: {1e3 * median:.1f} ms per image "
        f"(quartiles {1e3 * low:.1f} – {1e3 * high:.1f}, {len(samples)} calls of {len(batch)} images)"
    )
