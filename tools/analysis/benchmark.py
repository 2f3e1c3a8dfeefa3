"""Time a detector's inference: ``python tools/analysis/benchmark.py CONFIG [--checkpoint FILE]``.

One image at a time, from the image in memory to the detections; reading and resizing files is not
part of it. Without a checkpoint the weights are random, and what follows the network, NMS first of
all, has other boxes to do with than it would have.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from dcnzoo.cli._arguments import add_cfg_options, add_config
from dcnzoo.utils.errors import UserError, command, user_errors
from dcnzoo.utils.files import require_file
from dcnzoo.utils.jsonl import machine

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.device import get_device

from dcnzoo.openmmlab.model_builder import build_model, random_batch, test_batches


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    parser.add_argument("--checkpoint", help="checkpoint file")
    parser.add_argument("--task", choices=["inference"], default="inference", help="nothing else is timed")
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="height and width, or one for both, of an image of noise (default: images of the test set)",
    )
    parser.add_argument("--max-iter", type=int, default=200, help="images (default: 200)")
    parser.add_argument("--num-warmup", type=int, default=5, help="images before these (default: 5)")
    parser.add_argument("--log-interval", type=int, default=50, help="say so far (default: every 50 images)")
    parser.add_argument("--repeat-num", type=int, default=1, help="how often all of it (default: 1)")
    parser.add_argument(
        "--fuse-conv-bn", action="store_true", help="multiply batch norms into the convolutions first"
    )
    parser.add_argument("--amp", action="store_true", help="fp16 on a GPU, bf16 on the CPU")
    parser.add_argument("--device", default=get_device(), help="default: %(default)s")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read a checkpoint that holds more than weights, which runs whatever code is in it",
    )
    add_cfg_options(parser)
    return parser.parse_args()


def measure(run: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Seconds of one call."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def check(args: argparse.Namespace) -> None:
    require_file(args.config, "config")
    if args.checkpoint is not None:
        require_file(args.checkpoint, "checkpoint")
    for name, least in (("max_iter", 1), ("num_warmup", 0), ("log_interval", 1), ("repeat_num", 1)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: expected ≥ {least}, got {getattr(args, name)}")
    if args.shape is not None and (len(args.shape) > 2 or min(args.shape) < 1):
        raise UserError(f"--shape: expected one or two sizes ≥ 1, got {' '.join(map(str, args.shape))}")


def images_per_second(times: list[float]) -> str:
    median = statistics.median(times)
    return f"{1 / statistics.mean(times):.2f} images/s, median {1000 * median:.1f} ms/image"


@command
def main() -> None:
    args = parse_args()
    check(args)
    with user_errors():
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        model = build_model(cfg, args.checkpoint, args.trust)
        if args.fuse_conv_bn:
            model = fuse_conv_bn(model)
        model.to(args.device)
        if args.shape is not None:
            batches = [random_batch(args.shape[0], args.shape[-1])]
        else:
            batches = list(test_batches(cfg, args.max_iter))
    device = torch.device(args.device)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=args.amp):
        for repetition in range(args.repeat_num):
            times: list[float] = []
            for index in range(args.num_warmup + args.max_iter):
                batch = batches[index % len(batches)]
                seconds = measure(lambda batch=batch: model.test_step(batch), synchronize)
                if index >= args.num_warmup:
                    times.append(seconds)
                    if len(times) % args.log_interval == 0:
                        print(f"{len(times)} of {args.max_iter}: {images_per_second(times)}", flush=True)
            shape = "×".join(map(str, batches[0]["inputs"][0].shape[1:]))
            print(
                f"run {repetition + 1} of {args.repeat_num}: {images_per_second(times)}, {shape}, "
                f"{machine(device)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
