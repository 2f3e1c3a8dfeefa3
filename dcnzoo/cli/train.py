"""``dcnzoo train``, also ``tools/train.py``."""

from pathlib import Path
from typing import Any

import click

from dcnzoo.cli import _command, _options, _types
from dcnzoo.cli._options import option
from dcnzoo.utils.errors import show
from dcnzoo.utils.files import require_file


@click.command(cls=_command.Command)
@click.argument("model", type=_types.NAME, required=False, callback=_options.existing_model)
@option(
    "--data", type=_types.DATA, metavar="PATH",
    help="Train on these annotated pictures, a folder or file; writes a config and a report, too.",
)  # fmt: skip
@_options.work_dir
@option("--epochs", type=_types.POSITIVE, help="Number of epochs. The schedule is scaled with it.")
@option("--size", type=_types.POSITIVE, help="--data: longer side of the pictures.")
@_options.switch_off("--no-flip", "--data: flip no picture, as for text.")
@option("--batch-size", type=_types.POSITIVE, help="Images per iteration and process.")
@option("--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate.")
@_options.cfg_options
@option(
    "--resume", type=_types.NAME, is_flag=False, flag_value="auto", metavar="[CHECKPOINT]",
    help="Continue from a checkpoint (default: the last in the work directory).",
)  # fmt: skip
@option(
    "--force", is_flag=True, help="Train in a work directory that has checkpoints: it is renamed to NAME.1."
)
@option("--dry-run", is_flag=True, help="Build everything, train one step, write only --data and its sheet.")
@_options.switch_off("--no-sanity", "Do not predict a picture of the validation before the first step.")
@option("--report", is_flag=True, help="Write report.html after the training.")
@option("--patience", type=_types.POSITIVE, help="Stop after this number of validations without a better AP.")
@option("--seed", type=click.IntRange(min=0), help="Seed of all random numbers.")
@option("--amp", is_flag=True, help="Mixed precision: fp16 on a GPU, bf16 on the CPU.")
@option("--auto-scale-lr", is_flag=True, help="Scale the learning rate by the batch size.")
@option("--logger", type=click.Choice(["tensorboard", "wandb"]), help="Also log to this program.")
@_options.runner
@_options.reading
def command(model: str | None, report: bool, resume: str | None, **options: Any) -> None:
    """Train a detector.

    MODEL is a config, a name in the zoo (dcnzoo zoo list) or a work directory. It is optional with --data,
    which takes one format: YOLO (data.yaml, obj.data, or classes.txt beside labels), COCO's JSON, Pascal
    VOC's XML or LabelMe's JSON files; in a folder that has two, name the file. If names of files or folders
    say train and val (and test, which is kept apart), these are the splits; else a fifth of the pictures is
    drawn for validation. docs/train_your_data.md has all rules.

    \b
    examples:
      dcnzoo train configs/demo/mask-rcnn_r14_fpn_8e_shapes.py
      dcnzoo train CONFIG --cfg-options model.backbone.dcn=True --work-dir work_dirs/dcn
      dcnzoo train CONFIG --work-dir work_dirs/dcn --resume
      dcnzoo train --data fruits/ --work-dir work_dirs/fruits
      dcnzoo train fruits.py --epochs 30 --batch-size 8 --lr 0.01 --patience 5
    """
    if not (model or options["data"]):
        taken = f"; --resume has taken {resume} as its checkpoint" if resume not in (None, "auto") else ""
        raise click.UsageError(f"expected MODEL or --data{taken}")
    if resume not in (None, "auto"):
        require_file(resume, "--resume")
    from dcnzoo.openmmlab.hooks.summary import next_steps, print_pairs
    from dcnzoo.openmmlab.runs.ranks import is_first
    from dcnzoo.report.report import write_report
    from dcnzoo.report.sheet import SHEET, write_sheet
    from dcnzoo.utils.files import numbered
    from dcnzoo.zoo.training import train

    def show_data(splits: Any, folder: Path, size: Any) -> None:
        path = write_sheet(splits, numbered(folder / SHEET), size=size)
        show(f"sheet     {path}")

    work_dir = train(model, resume=True if resume == "auto" else resume, on_data=show_data, **options)
    if options["dry_run"] or not is_first():
        return
    if report or options["data"]:
        print_pairs([("report", str(write_report([work_dir], device=options["device"])))])
    print_pairs([("next", next_steps(work_dir))])
