"""Arguments that several commands have."""

import argparse

import torch
from mmengine.config import DictAction
from torch import nn

from dcnzoo import zoo
from dcnzoo.openmmlab.runner import config_file
from dcnzoo.utils.errors import UserError, user_errors


def make_parser(description: str, checkpoint: bool = False) -> argparse.ArgumentParser:
    """The arguments common to the tools that run a config, named as MMDetection names them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    if checkpoint:
        parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--work-dir", help="where logs and results go (default: work_dirs/<name of the config>)"
    )
    add_cfg_options(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    # torchrun sets LOCAL_RANK; older launchers pass it as an argument
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=config_file, help="config file, or one that a package brings: dcnzoo::FOLDER/FILE.py"
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="override settings of the config, e.g. model.backbone.dcn=True "
        'train_dataloader.batch_size=4 "model.backbone.strides=(1,2,2)"',
    )


def add_allow_partial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="load what fits of a checkpoint that does not fit the model",
    )


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
    with user_errors():
        return zoo.load(
            args.model,
            checkpoint=args.checkpoint,
            device=args.device,
            trust=args.trust,
            cfg_options=args.cfg_options,
            allow_partial=args.allow_partial,
        )
