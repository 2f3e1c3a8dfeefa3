"""Evaluate published weights on COCO and print what was measured beside what was published.

CONFIG is a file, or a name of the zoo (`dcnzoo zoo list`). With --train the model is trained first.
"""

import contextlib
import datetime
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dcnzoo.cli._arguments import add_allow_partial, make_parser
from dcnzoo.openmmlab.runner import build_runner, load_config
from dcnzoo.utils.errors import UserError, command, user_errors
from dcnzoo.utils.files import require_file
from dcnzoo.utils.jsonl import append_row, machine, versions
from dcnzoo.utils.lock import lock_work_dir

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.runner import Runner

from dcnzoo import zoo
from dcnzoo.openmmlab.weights import load_weights
from dcnzoo.utils.fetch import fetch, verify
from dcnzoo.utils.files import write_text

# what CocoMetric calls a figure, and what metafiles call it
FIGURES = {"bbox_mAP": "box AP", "segm_mAP": "mask AP"}


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--checkpoint", help="weights: a file or an address (default: the published ones, downloaded)"
    )
    parser.add_argument("--train", action="store_true", help="train the model first; resumes what was begun")
    parser.add_argument(
        "--data-root", help="folder with COCO: annotations/, train2017/, val2017/ (default: the config's)"
    )
    parser.add_argument("--subset", type=int, metavar="N", help="evaluate the first N images only")
    parser.add_argument(
        "--out",
        default="work_dirs/reproduce.jsonl",
        help="file that a row is added to (default: %(default)s)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read a checkpoint that holds more than weights, which runs whatever code is in it",
    )
    add_allow_partial(parser)
    return parser.parse_args()


def find_model(config: str) -> zoo.Model | None:
    """The zoo's entry for a name or a file; None for a file that the zoo does not know."""
    path = Path(config)
    if not path.is_file():
        return zoo.find(config)
    return next((m for m in zoo.models() if m.name == path.stem and m.config.samefile(path)), None)


def datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = [dataset.dataset] if "dataset" in dataset else dataset.get("datasets", [])
    if not inner:
        yield dataset
    for each in inner:
        yield from datasets(each)


def use_data(cfg: Config, root: str | None, subset: int | None, work_dir: Path) -> int:
    """Points the config at the data; returns the number of images that are evaluated."""
    loaders = ["train_dataloader", "val_dataloader", "test_dataloader"]
    if root is not None:
        for dataset in (d for loader in loaders if cfg.get(loader) for d in datasets(cfg[loader].dataset)):
            dataset.data_root = f"{root.rstrip('/')}/"
    tested = list(datasets(cfg.test_dataloader.dataset))
    if len(tested) != 1 or "ann_file" not in tested[0]:
        raise UserError(f"test_dataloader: expected one data set with annotations, found {len(tested)}")
    annotations = Path(tested[0].get("data_root") or "", tested[0].ann_file)
    if not annotations.is_file():
        raise UserError(
            f"annotations: expected a file, found none at {annotations} "
            "(tools/download_dataset.py gets COCO; --data-root says where it is)"
        )
    content = json.loads(annotations.read_text())
    if subset is not None:
        content = part_of(content, subset)
        annotations = work_dir / f"first-{subset}-images.json"
        write_text(annotations, json.dumps(content))
    if not content["annotations"]:
        raise UserError(f"{annotations}: expected annotated objects, found none")
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    for evaluator in evaluators:
        evaluator.ann_file = str(annotations.resolve())
    tested[0].ann_file = str(annotations.resolve())
    return len(content["images"])


def part_of(content: dict, number: int) -> dict:
    """The annotations of the first images, by their numbers: those of the others would count as missed."""
    images = sorted(content["images"], key=lambda image: image["id"])[:number]
    kept = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in kept]
    return {**content, "images": images, "annotations": annotations}


def the_checkpoint(given: str | None, model: zoo.Model | None) -> Path:
    if given is None and model is None:
        raise UserError("expected --checkpoint FILE or --train: the zoo has no weights for a config of yours")
    if given is None:
        return fetch(model.only_weights())
    if "://" in given:
        return fetch(given)
    require_file(given, "checkpoint")
    return Path(given)


def evaluate(runner: Runner, checkpoint: Path, trust: bool, allow_partial: bool) -> dict[str, float]:
    """AP in percent, by the names that metafiles use."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    _, report = load_weights(model, checkpoint, trust, allow_partial)
    if report:
        runner.logger.info(f"{checkpoint}: {report}")
    metrics = runner.test()
    if not metrics:  # CocoMetric's answer where nothing at all is detected
        metrics = {f"{metric}_mAP": 0.0 for metric in runner.test_evaluator.metrics[0].metrics}
    found = {metric.rpartition("/")[2]: value for metric, value in metrics.items()}
    return {name: round(100 * found[key], 1) for key, name in FIGURES.items() if key in found}


def published_figures(model: zoo.Model | None) -> tuple[dict[str, float], str]:
    """AP as published, and by whom."""
    for source in model.sources() if model else ():
        if source.startswith("published"):
            return {k: v for k, v in model.metrics(source).items() if k in FIGURES.values()}, source
    return {}, ""


def show(row: dict) -> None:
    print(f"\n{row['model']} on {row['images']} images of {row['data']}")
    print(f"{'':10}{'measured':>10}{'published':>11}{'difference':>12}")
    for name, value in row["measured"].items():
        published = row["published"].get(name)
        difference = row["difference"].get(name)
        cells = "–" if published is None else published, "–" if difference is None else f"{difference:+.1f}"
        print(f"{name:10}{value:>10}{cells[0]:>11}{cells[1]:>12}")
    if row["subset"] is not None and row["published"]:
        print("On a part of the images: the published figure is of all of them.")


@command
def main() -> None:
    args = parse_args()
    if args.subset is not None and args.subset < 1:
        raise UserError(f"--subset: expected ≥ 1, got {args.subset}")
    if args.train and args.checkpoint:
        raise UserError("expected --train or --checkpoint, got both")
    model = find_model(args.config)
    if model is not None:
        args.config = str(model.config)
    with contextlib.ExitStack() as training:
        with user_errors():
            cfg = load_config(args)
            work_dir = Path(cfg.work_dir)
            if args.train:
                training.enter_context(lock_work_dir(work_dir, cfg.launcher))
            images = use_data(cfg, args.data_root, args.subset, work_dir)
            checkpoint = None if args.train else the_checkpoint(args.checkpoint, model)
            cfg.load_from, cfg.resume = None, args.train
            runner = build_runner(cfg, training=args.train)
            if not cfg.launcher or cfg.launcher == "none":
                runner.model = revert_sync_batchnorm(runner.model)
        started = time.time()
        if args.train:
            runner.train()
            # what was saved, which is the moving average where the config keeps one
            checkpoint = Path((work_dir / "last_checkpoint").read_text())
    measured = evaluate(runner, checkpoint, args.trust, args.allow_partial)
    if not is_main_process():
        return
    published, source = published_figures(model)
    row = {
        "model": model.id if model else args.config,
        "measured": measured,
        "published": published,
        "difference": {k: round(v - published[k], 1) for k, v in measured.items() if k in published},
        "source": source,
        "data": cfg.test_evaluator.ann_file if isinstance(cfg.test_evaluator, dict) else "",
        "images": images,
        "subset": args.subset,
        "trained": args.train,
        "checkpoint": checkpoint.name,
        "sha256": verify(checkpoint, "sha256:").removeprefix("sha256:"),
        "machine": machine(next(runner.model.parameters()).device),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "command": shlex.join(["python", *sys.argv]),
    }
    append_row(args.out, row)
    show(row)
    print(f"added to {args.out}")


if __name__ == "__main__":
    main()
