"""``dcnzoo bench``, also ``tools/analysis/benchmark.py``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option

if TYPE_CHECKING:
    import numpy as np

POSITIVE = click.IntRange(min=1)


@click.command(cls=_options.Command)
@_options.model
@click.argument("images", nargs=-1, metavar="[IMAGE...]", type=click.Path())
@_options.checkpoint
@_options.shape(
    "Size of an image of noise (default: images of the test set; for an exported file, 480 × 640)."
)
@option("--max-iter", type=POSITIVE, default=200, help="Number of images.")
@option(
    "--num-warmup", type=click.IntRange(min=0), default=5, help="Number of images before the measurement."
)
@option("--threads", type=POSITIVE, help="Number of CPU threads (default: the runtime's).")
@option("--fuse-conv-bn", is_flag=True, help="Fold batch norms into convolutions first.")
@option("--amp", is_flag=True, help="Mixed precision: fp16 on a GPU, bf16 on the CPU.")
@_options.backend
@_options.device
@_options.unsafe_load
@_options.cfg_options
def command(
    model: str,
    images: tuple[str, ...],
    shape: tuple[int, int] | None,
    max_iter: int,
    num_warmup: int,
    threads: int | None,
    backend: str | None,
    device: str,
    **of_pytorch: Any,
) -> None:
    """Time a detector's inference.

    MODEL is a name in the zoo, a config (without --checkpoint, its weights are random), a work directory or
    an exported file. Runs one image at a time, from the image in memory to the detections; only the time of
    an exported file includes resizing the image. With random weights, NMS and other steps after the network
    receive other boxes than with trained weights.

    \b
    examples:
      dcnzoo bench CONFIG --checkpoint FILE --shape 800 1280 --fuse-conv-bn
      dcnzoo bench faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco picture.jpg
      dcnzoo bench model.onnx picture.jpg --threads 2
    """
    import numpy as np

    from dcnzoo.detect.exported import ExportedDetector
    from dcnzoo.detect.pictures import read
    from dcnzoo.utils.errors import user_errors

    exported = model.endswith(_options.EXPORTED)
    given = [name.replace("_", "-") for name, value in of_pytorch.items() if value]
    if exported and given:
        raise click.UsageError(f"--{given[0]}: not allowed with an exported file, got {model}")
    if images and shape:
        raise click.UsageError("--shape: not allowed with IMAGE")
    with user_errors():
        samples: Sequence = [read(image) for image in images]
        if exported:
            noise = np.random.default_rng(0).integers(0, 256, (*(shape or (480, 640)), 3)).astype(np.uint8)
            detect, samples = ExportedDetector(model, backend, device, threads), samples or [noise]
        else:
            detect, samples = _pytorch(model, samples, shape, device, threads, max_iter, **of_pytorch)
    times: list[float] = []
    for index in range(num_warmup + max_iter):
        start = time.perf_counter()
        detect(samples[index % len(samples)])
        if index >= num_warmup:
            times.append(time.perf_counter() - start)
    rate, median = 1 / statistics.mean(times), 1000 * statistics.median(times)
    print(f"{max_iter} images: {rate:.2f} images/s, median {median:.1f} ms/image")


def _pytorch(
    model: str,
    pictures: Sequence[np.ndarray],
    shape: tuple[int, int] | None,
    device: str,
    threads: int | None,
    max_iter: int,
    checkpoint: str | None,
    fuse_conv_bn: bool,
    amp: bool,
    unsafe_load: bool,
    cfg_options: dict,
) -> tuple[Callable, list]:
    """Return a function that detects objects, and its inputs, which the test pipeline has resized."""
    import torch
    from mmcv.cnn import fuse_conv_bn as fuse
    from mmengine.dataset import pseudo_collate

    from dcnzoo.openmmlab.detector import TorchDetector, build, random_batch, test_batches
    from dcnzoo.openmmlab.runner import read_config_file
    from dcnzoo.zoo.loading import locate

    config, weights = locate(model, checkpoint)
    cfg = read_config_file(config, cfg_options)
    detector = TorchDetector(build(cfg, weights, device=device, unsafe_load=unsafe_load))
    network = detector.model
    if fuse_conv_bn:
        network = fuse(network)
    if threads:
        torch.set_num_threads(threads)
    if pictures:
        samples = [pseudo_collate([detector.prepare(picture)]) for picture in pictures]
    elif shape:
        samples = [random_batch(*shape)]
    else:
        samples = list(test_batches(cfg, max_iter))
    kind = torch.device(detector.device).type
    dtype = torch.float16 if kind == "cuda" else torch.bfloat16

    def detect(batch: dict) -> None:
        with torch.no_grad(), torch.autocast(kind, dtype, enabled=amp):
            network.test_step(batch)
        if kind == "cuda":
            torch.cuda.synchronize()

    return detect, samples
