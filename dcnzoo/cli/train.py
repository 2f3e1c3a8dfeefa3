"""``dcnzoo train``, also ``tools/train.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option

POSITIVE = click.IntRange(min=1)
# the options of dcnzoo.openmmlab.training.set_up_training
SETTINGS = ("amp", "auto_scale_lr", "resume", "epochs", "batch_size", "lr", "patience", "logger", "force")


@click.command(cls=_options.Command)
@_options.model
@_options.runner
@option("--epochs", type=POSITIVE, help="Number of epochs. The schedule is scaled with it.")
@option("--batch-size", type=POSITIVE, help="Images per iteration and process.")
@option("--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate.")
@option("--patience", type=POSITIVE, help="Stop after this number of validations without a better AP.")
@option("--logger", type=click.Choice(["tensorboard", "wandb"]), help="Also log to this program.")
@option("--amp", is_flag=True, help="Mixed precision: fp16 with loss scaling on a GPU, bf16 on the CPU.")
@option(
    "--auto-scale-lr",
    is_flag=True,
    help="Scale the learning rate by batch size / auto_scale_lr.base_batch_size.",
)
@option(
    "--resume",
    is_flag=False,
    flag_value="auto",
    metavar="[CHECKPOINT]",
    help="Resume from a checkpoint (default: the latest in the work directory).",
)
@option("--force", is_flag=True, help="Train in a work directory that has checkpoints, and replace them.")
@option("--report", is_flag=True, help="Write report.html to the work directory after training.")
@_options.allow_partial
@_options.verbose
def command(model: str, report: bool, allow_partial: bool, verbose: bool, **run: Any) -> None:
    """Train a detector.

    MODEL is a config, a name in the zoo (dcnzoo zoo list) or a work directory.

    \b
    examples:
      dcnzoo train configs/demo/mask-rcnn_r14_fpn_8e_shapes.py
      dcnzoo train CONFIG --cfg-options model.backbone.dcn=True --work-dir work_dirs/dcn --report
      dcnzoo train CONFIG --work-dir work_dirs/dcn --resume
      dcnzoo train fruits.py --epochs 30 --batch-size 8 --lr 0.01 --patience 5
    """
    from mmengine.dist import is_main_process

    from dcnzoo.openmmlab.runner import load_config
    from dcnzoo.openmmlab.training import set_up_training, train
    from dcnzoo.report.report import write_report
    from dcnzoo.utils.errors import user_errors
    from dcnzoo.utils.lock import lock_work_dir
    from dcnzoo.zoo.loading import locate

    with user_errors():
        settings = {name: run.pop(name) for name in SETTINGS}
        config = str(locate(model, weights=False)[0])
        cfg = load_config(config, **run, required=("train_dataloader", "train_cfg", "optim_wrapper"))
        changes = set_up_training(cfg, **settings)
    with lock_work_dir(cfg.work_dir, cfg.launcher):
        try:
            train(cfg, allow_partial, changes, verbose)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"--resume continues the training in {cfg.work_dir}") from None
        if report and is_main_process():
            print(f"report: {write_report([Path(cfg.work_dir)], device='auto')}")
