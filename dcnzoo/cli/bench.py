"""``dcnzoo bench``."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import click

from dcnzoo.cli import _command, _options
from dcnzoo.cli._options import option
from dcnzoo.cli._types import NAME, POSITIVE
from dcnzoo.utils.errors import note, one_line, show
from dcnzoo.utils.formats import EXPORTED
from dcnzoo.utils.text import columns


@click.command(cls=_command.Command)
@_options.model
@click.argument("images", nargs=-1, metavar="[IMAGE...]", type=NAME)
@_options.checkpoint
@option("--exported", type=NAME, multiple=True, help="Also time this file, in each installed runtime.")
@_options.shape("Size of an image of noise, if there is no IMAGE (default: 480 × 640).")
@option("--max-iter", type=POSITIVE, default=20, help="Number of images.")
@option("--num-warmup", type=click.IntRange(min=0), default=2, help="Number of images before these.")
@option("--threads", type=POSITIVE, help="Number of CPU threads (default: the runtime's).")
@_options.backend
@_options.device
@_options.unsafe_load
@_options.cfg_options
def command(
    model: str, images: tuple[str, ...], checkpoint: str | None, exported: tuple[str, ...], max_iter: int,
    shape: tuple[int, int] | None, num_warmup: int, threads: int | None,
    backend: str | None, device: str, unsafe_load: bool, cfg_options: dict,
) -> None:  # fmt: skip
    """Compare the precisions and runtimes of a detector: time and detections.

    MODEL is a name in the zoo, a config (without --checkpoint, its weights are random), a work directory or
    an exported file. They take turns, one image at a time; times are from the image in memory to detections.
    With random weights or noise, NMS receives other boxes than with trained weights and photographs. *same*
    is the share of detections with a counterpart in the first row.

    \b
    examples:
      dcnzoo bench CONFIG --checkpoint FILE picture.jpg --exported model.onnx
      dcnzoo bench faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco --shape 800 1333
      dcnzoo bench model.onnx picture.jpg --threads 2
    """
    from dcnzoo.detect import timing

    if images:
        _options.refuse("IMAGE", "shape")
    if model.endswith(EXPORTED):
        _options.refuse("an exported file", "checkpoint", "unsafe_load", "cfg_options")
    elif not exported:
        _options.refuse_without("an exported file", "backend")
    pictures = timing.pictures(images, shape or (480, 640))
    detectors: dict[str, Any] = {}
    if model.endswith(EXPORTED):
        exported = (model, *exported)
    else:
        import torch

        from dcnzoo.openmmlab.detector import TorchDetector
        from dcnzoo.openmmlab.runs.build import build_model
        from dcnzoo.zoo.source import resolve

        source = resolve(model, checkpoint)
        weights = source.read_weights() if source.has_weights else None
        network = build_model(source.recipe(cfg_options), weights, device=device, unsafe_load=unsafe_load)
        if threads:
            torch.set_num_threads(threads)
        detectors["PyTorch float32"] = TorchDetector(network)
        detectors["PyTorch bf16"] = TorchDetector(network, precision="bf16")
    detectors |= _open(exported, backend, device, threads)
    if any(each.device != "cpu" for each in detectors.values()):
        detectors = {f"{name}, {each.device}": each for name, each in detectors.items()}
    timings = timing.measure(detectors, pictures, max_iter, num_warmup)
    first = next(iter(timings.values()))  # the reference of the times and the detections
    rows = [["", "ms/image", "relative", "same"]]
    for name, each in timings.items():
        relative, same = each.median / first.median, timing.agreement(first.results, each.results)
        rows.append([name, f"{1000 * each.median:.1f}", f"{relative:.2f}", f"{same:.1%}"])
    show(*columns(rows, numbers=True))


def _open(paths: Sequence[str], backend: str | None, device: str, threads: int | None) -> dict[str, Any]:
    """Open files in a runtime or in each installed one that reads them; OpenVINO: in float32 and bfloat16.

    An installed runtime that cannot open a file, such as on this device, is left out; a line says why.

    Raises:
        ValueError: no runtime can open a file.
    """
    from dcnzoo.detect.exported import ExportedDetector

    installed: list[str | None] = [name for name in ("onnxruntime", "openvino") if find_spec(name)]
    detectors = {}
    for path in dict.fromkeys(paths):
        runtimes = (installed if backend is None and path.endswith(".onnx") else []) or [backend]
        problems: dict[str, ValueError] = {}
        for runtime in runtimes:
            name = ", ".join(filter(None, (path, runtime)))
            try:
                detectors[name] = detector = ExportedDetector(path, runtime, device, threads)
            except ValueError as error:
                problems[name] = error
                continue
            if detector.model.backend == "openvino":
                bf16 = ExportedDetector(path, runtime, device, threads, precision="bf16")
                detectors[f"{name}, bf16"] = bf16
        if len(problems) == len(runtimes):
            raise next(iter(problems.values()))
        for name, problem in problems.items():
            note(f"left out: {name}: {one_line(problem)}")
    return detectors
