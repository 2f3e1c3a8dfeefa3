"""Estimate the cluster requirements of a training: sizes, and images per second by number of nodes."""

import io
import math
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import click
import cv2
import numpy as np
import torch
from torch import nn

from dcnzoo.cli import _options, one_line_errors
from dcnzoo.cli._options import option
from dcnzoo.openmmlab.model_builder import build_model
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.utils.errors import user_errors
from dcnzoo.utils.files import require_file

# isort: split
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table

COCO = 118_287  # images of train2017
POSITIVE = click.FloatRange(min=0, min_open=True)


class _Counter(io.RawIOBase):
    """A file that only counts bytes."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)


def saved_size(checkpoint: dict) -> int:
    counter = _Counter()
    torch.save(checkpoint, counter)
    return counter.size


def sizes(model: nn.Module, optim_wrapper: dict) -> dict[str, int]:
    """Return the number of parameters, and the bytes of gradients, weights and a resumable checkpoint."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gradients": sum(parameter.numel() * parameter.element_size() for parameter in learning),
        "weights": saved_size({"state_dict": model.state_dict()}),
    }
    wrapper = build_optim_wrapper(model, dict(optim_wrapper, type="OptimWrapper"))
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    wrapper.optimizer.step()  # an optimizer creates its state in the first step
    state = {"state_dict": model.state_dict(), "optimizer": wrapper.state_dict()}
    return {**found, "checkpoint": saved_size(state)}


def exchange(gradients: int, nodes: int, bandwidth: float) -> float:
    """Return the seconds of a ring all-reduce: every node sends and receives 2 (n - 1) / n of the bytes."""
    return 2 * (nodes - 1) / nodes * gradients / (bandwidth * 1e9)


def iteration(seconds: float, gradients: int, nodes: int, bandwidth: float, overlap: float) -> float:
    """Return the seconds of an iteration, including the exchange as far as it does not overlap."""
    return seconds + max(0.0, exchange(gradients, nodes, bandwidth) - overlap * seconds)


def loader_rate(pipeline: list[dict], seconds: float = 3.0) -> float:
    """Measure the images per second that one process loads and transforms.

    The image is a JPEG of 640×480 pixels with ten objects.
    """
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(picture + generator.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
    boxes = [[x, 20.0 + x, x + 150.0, 200.0 + x] for x in np.linspace(0, 250, 10)]
    polygons = [[a, b, c, b, c, d, a, d] for a, b, c, d in boxes]
    instances = [
        {"bbox": box, "bbox_label": 0, "ignore_flag": 0, "mask": [polygon]}
        for box, polygon in zip(boxes, polygons, strict=True)
    ]
    cv2.setNumThreads(0)  # as mmengine does in workers
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
        image = {"img_path": str(path), "img_id": 0, "height": 480, "width": 640, "instances": instances}
        transforms = Compose(pipeline)
        transforms(dict(image))
        done, start = 0, time.process_time()  # CPU time, independent of other processes
        while time.process_time() < start + seconds:
            transforms({**image, "instances": [dict(instance) for instance in instances]})
            done += 1
        return done / (time.process_time() - start)


def table(args: SimpleNamespace, batch: int, gradients: int) -> Table:
    found = Table("nodes", "devices", "images in a step", "images / s", "of ideal", "minutes of an epoch")
    nodes = 1
    while nodes <= args.nodes:
        devices = nodes * args.devices
        seconds = iteration(args.seconds, gradients, nodes, args.bandwidth, args.overlap)
        rate = devices * batch / seconds
        steps = math.ceil(args.num_images / (devices * batch))
        cells = (nodes, devices, devices * batch, f"{rate:,.1f}", f"{args.seconds / seconds:.0%}")
        found.add_row(*map(str, cells), f"{steps * seconds / 60:,.1f}")
        nodes *= 2
    return found


@click.command(cls=_options.Command)
@_options.config
@option("--seconds", type=POSITIVE, help="Measured seconds per iteration on one device.")
@option("--devices", type=click.IntRange(1), default=8, help="Number of devices per node.")
@option("--nodes", type=click.IntRange(1), default=64, help="Calculate up to this number of nodes.")
@option(
    "--bandwidth",
    type=POSITIVE,
    default=12.5,
    help="Network bandwidth of a node, in GB/s (100 Gb/s = 12.5 GB/s).",
)
@option(
    "--overlap",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="Share of an iteration that can overlap with the exchange of gradients.",
)
@_options.num_images(1, COCO, "Number of images per epoch.")
@option("--loader", is_flag=True, help="Also measure the data loader's pipeline.")
@_options.cfg_options
def main(config: str, loader: bool, cfg_options: dict, **calculation: float) -> None:
    """Estimate the cluster requirements of a training.

    Measures the sizes of gradients and checkpoint and, with --loader, the images per second of one worker of
    the config's data loader. Calculates from these and --seconds, the time of an iteration on one device, the
    images per second on 1, 2, 4, … nodes. docs/scale.md describes the method.

    \b
    examples:
      python tools/analysis/scaling.py CONFIG --seconds 0.5
    """
    args = SimpleNamespace(**calculation)
    require_file(config, "config")
    with user_errors():
        cfg = read_config_file(config, cfg_options)
        MMLogger.get_instance("mmengine").setLevel("WARNING")  # initialisation would log every parameter
        model = build_model(cfg)
        found = sizes(model, cfg.optim_wrapper)
    console = Console(width=100)
    console.print(f"parameters                 {found['parameters']:,}")
    for name in ("gradients", "weights", "checkpoint"):
        console.print(f"{name:26} {found[name] / 1e6:,.1f} MB")
    if loader:
        with user_errors():
            init_default_scope(cfg.get("default_scope", "mmdet"))
            rate = loader_rate(cfg.train_dataloader.dataset.pipeline)
        console.print(f"data loader worker         {rate:.1f} images / s")
    if args.seconds is not None:
        batch = cfg.train_dataloader.batch_size
        console.print(
            f"\nCalculated: {args.seconds:g} s for {batch} images on a device, {args.devices} devices in a "
            f"node, {args.bandwidth:g} GB/s between nodes"
        )
        if loader:
            console.print(f"Data loader workers per device: {math.ceil(batch / args.seconds / rate)}")
        console.print(table(args, batch, found["gradients"]))


if __name__ == "__main__":
    with one_line_errors():
        main()
