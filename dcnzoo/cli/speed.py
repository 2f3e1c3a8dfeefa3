"""``dcnzoo speed``, also ``tools/analysis/benchmark.py``."""

from __future__ import annotations

import statistics
import time

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option

POSITIVE = click.IntRange(min=1)


@click.command(cls=_options.Command)
@_options.config
@option("--checkpoint", metavar="FILE", help="Weights (default: random ones).")
@option("--task", type=click.Choice(["inference"]), default="inference", hidden=True)
@_options.shape(
    "Height and width, or one size for both, of an image of noise (default: images of the test set)."
)
@option("--max-iter", type=POSITIVE, default=200, help="Number of images.")
@option(
    "--num-warmup", type=click.IntRange(min=0), default=5, help="Number of images before the measurement."
)
@option("--log-interval", type=POSITIVE, default=50, help="Print a line after this number of images.")
@option("--repeat-num", type=POSITIVE, default=1, help="Number of repetitions.")
@option("--fuse-conv-bn", is_flag=True, help="Fold batch norms into convolutions first.")
@option("--amp", is_flag=True, help="Mixed precision: fp16 on a GPU, bf16 on the CPU.")
@option("--device", metavar="DEVICE", help="cpu, cuda or cuda:1 (default: a GPU if available).")
@_options.unsafe_load
@_options.cfg_options
def command(
    config: str,
    checkpoint: str | None,
    task: str,
    shape: tuple[int, int] | None,
    max_iter: int,
    num_warmup: int,
    log_interval: int,
    repeat_num: int,
    fuse_conv_bn: bool,
    amp: bool,
    device: str | None,
    unsafe_load: bool,
    cfg_options: dict,
) -> None:
    """Time a detector's inference.

    Runs one image at a time, from the image in memory to the detections, without reading and resizing files.
    With random weights, NMS and other steps after the network receive other boxes than with trained weights.

    \b
    examples:
      dcnzoo speed CONFIG --checkpoint FILE --shape 800 1280 --fuse-conv-bn
    """
    import torch

    from dcnzoo.openmmlab import model_builder
    from dcnzoo.openmmlab.detector import require_device
    from dcnzoo.openmmlab.runner import read_config_file
    from dcnzoo.utils.errors import user_errors
    from dcnzoo.utils.files import require_file
    from dcnzoo.utils.jsonl import machine

    # isort: split
    from mmcv.cnn import fuse_conv_bn as fuse
    from mmengine.device import get_device

    require_file(config, "config")
    if checkpoint is not None:
        require_file(checkpoint, "checkpoint")
    with user_errors():
        cfg = read_config_file(config, cfg_options)
        model = model_builder.build_model(cfg, checkpoint, unsafe_load)
        if fuse_conv_bn:
            model = fuse(model)
        place = require_device(device or get_device())
        model.to(place)
        batches = (
            [model_builder.random_batch(*shape)] if shape else list(model_builder.test_batches(cfg, max_iter))
        )
    synchronize = torch.cuda.synchronize if place.type == "cuda" else lambda: None
    dtype = torch.float16 if place.type == "cuda" else torch.bfloat16
    with torch.no_grad(), torch.autocast(place.type, dtype, enabled=amp):
        for repetition in range(repeat_num):
            times: list[float] = []
            for index in range(num_warmup + max_iter):
                synchronize()
                start = time.perf_counter()
                model.test_step(batches[index % len(batches)])
                synchronize()
                if index >= num_warmup:
                    times.append(time.perf_counter() - start)
                    if len(times) % log_interval == 0:
                        print(f"{len(times)} of {max_iter}: {_images_per_second(times)}", flush=True)
            size = "×".join(map(str, batches[0]["inputs"][0].shape[1:]))
            name = f"run {repetition + 1} of {repeat_num}"
            print(f"{name}: {_images_per_second(times)}, {size}, {machine(place)}", flush=True)


def _images_per_second(times: list[float]) -> str:
    median = statistics.median(times)
    return f"{1 / statistics.mean(times):.2f} images/s, median {1000 * median:.1f} ms/image"
