"""What the tools share that look at single images: the model, and images that can be read."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from dcnzoo.cli._config import add_allow_partial, add_cfg_options
from dcnzoo.utils.errors import UserError, user_errors


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="of the zoo (dcnzoo zoo list), or a config file"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="weights (default: the published ones; a config file needs it)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: cpu)")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read a checkpoint that holds more than weights, which runs whatever code is in it",
    )
    add_allow_partial(parser)
    add_cfg_options(parser)


def load_model(args: argparse.Namespace) -> nn.Module:
    """The detector that :func:`add_model_arguments` asked for."""
    try:
        device = torch.device(args.device)
    except RuntimeError:
        raise UserError(f"--device: expected cpu, cuda or cuda:N, got {args.device}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device: expected one of {torch.cuda.device_count()} GPUs, got {args.device}")
    from dcnzoo import zoo

    with user_errors():
        return zoo.load(
            args.model,
            checkpoint=args.checkpoint,
            device=args.device,
            trust=args.trust,
            cfg_options=args.cfg_options,
            allow_partial=args.allow_partial,
        )


def require_images(paths: Iterable[str]) -> None:
    """Raise UserError unless each path is that of a file that begins as an image does."""
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"image: expected a file, found none at {path}")
        if not cv2.haveImageReader(path):
            raise UserError(f"image: expected a picture that OpenCV can read, found something else in {path}")


def read_image(path: str) -> np.ndarray:  # [H, W, 3], uint8, RGB
    """As the pipelines of MMDetection read it."""
    image = cv2.imread(path)
    if image is None:
        raise UserError(f"image: expected a picture that OpenCV can read, found a broken one in {path}")
    return image[..., ::-1].copy()
