"""Train a detector: ``python tools/train.py CONFIG [options]``, also ``dcnzoo train``.

examples:
  dcnzoo train configs/demo/mask-rcnn_r14_fpn_8e_shapes.py
  dcnzoo train CONFIG --cfg-options model.backbone.dcn=True --work-dir work_dirs/dcn --report
  dcnzoo train CONFIG --work-dir work_dirs/dcn --resume
"""

from pathlib import Path

from dcnzoo.cli._arguments import add_allow_partial, make_parser
from dcnzoo.openmmlab.runner import build_runner, load_config
from dcnzoo.utils.errors import UserError, command, user_errors
from dcnzoo.utils.files import require_file

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from dcnzoo.report.write import write_report
from dcnzoo.utils.fetch import DownloadError
from dcnzoo.utils.lock import lock_work_dir


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--amp",
        action="store_true",
        help="mixed precision: fp16 with loss scaling on a GPU, bf16 on the CPU",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by batch size / auto_scale_lr.base_batch_size",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from a checkpoint, or from the latest one in the work directory",
    )
    parser.add_argument(
        "--report", action="store_true", help="when training ends, write report.html to the work directory"
    )
    add_allow_partial(parser)
    return parser.parse_args()


def check_base_batch_size(cfg: Config) -> None:
    scaling = cfg.get("auto_scale_lr") or {}
    base = scaling.get("base_batch_size")
    if scaling.get("enable") and (type(base) is not int or base < 1):
        raise UserError(
            "auto_scale_lr.base_batch_size: expected how many images per step the config's learning rate "
            f"is meant for, ≥ 1, got {base}"
        )


def count_accumulated_batches(runner: Runner) -> None:
    """mmengine scales by the images of one iteration; a step is of ``accumulative_counts`` iterations."""
    count = runner.cfg.optim_wrapper.get("accumulative_counts", 1)
    scaling = runner.cfg.get("auto_scale_lr") or {}
    if count == 1 or not scaling.get("enable"):
        return
    runner.logger.info(
        f"A step is of {count} iterations (accumulative_counts): the learning rate, meant for "
        f"{scaling.base_batch_size} images, is scaled as for {scaling.base_batch_size / count:g} in each."
    )
    owner, name = (
        (runner, "auto_scale_lr") if isinstance(runner, Runner) else (runner.strategy, "_auto_scale_lr")
    )
    setattr(owner, name, {"enable": True, "base_batch_size": scaling.base_batch_size / count})


def has_checkpoint(cfg: Config) -> bool:
    """Whether ``--resume`` has a checkpoint to continue from; else training starts from ``load_from``."""
    work_dir, hook = Path(cfg.work_dir), cfg.default_hooks.get("checkpoint") or {}
    folders = [work_dir]
    if hook.get("out_dir"):
        if "://" in str(hook.out_dir):
            return (work_dir / "last_checkpoint").is_file()
        folders.append(Path(hook.out_dir) / work_dir.name)
    return (work_dir / "last_checkpoint").is_file() or any(
        folder.is_dir() and any(folder.glob("*.pth")) for folder in folders
    )


@command
def main() -> None:
    args = parse_args()
    require_file(args.config, "config")
    with user_errors():
        cfg = load_config(args)
        if args.amp:
            cfg.optim_wrapper.type = "AmpOptimWrapper"
            cfg.optim_wrapper.loss_scale = "dynamic"
        if args.auto_scale_lr:
            cfg.auto_scale_lr = {**(cfg.get("auto_scale_lr") or {}), "enable": True}
        check_base_batch_size(cfg)
        if args.resume == "auto":
            cfg.resume = not cfg.get("load_from") or has_checkpoint(cfg)
            cfg.load_from = None if cfg.resume else cfg.load_from
        elif args.resume is not None:
            cfg.resume, cfg.load_from = True, args.resume
        if cfg.get("load_from"):
            require_file(cfg.load_from, "checkpoint")
    with lock_work_dir(cfg.work_dir, cfg.launcher):
        with user_errors():
            runner = build_runner(cfg, training=True, allow_partial=args.allow_partial)
            count_accumulated_batches(runner)
        try:
            runner.train()
        except DownloadError as error:
            raise UserError(
                f"{error}; to train without them, write the config with dcnzoo data config --no-weights"
            ) from error
        if args.report and is_main_process():
            device = "cuda" if torch.cuda.is_available() else "cpu"
            print(f"report: {write_report([Path(cfg.work_dir)], device=device)}")


if __name__ == "__main__":
    main()
