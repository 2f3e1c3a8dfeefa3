"""A page about one training, or about several beside each other: ``python tools/report.py WORK_DIR…``.

Also ``dcnzoo report``, and ``tools/train.py CONFIG --report`` when training ends. One HTML file that needs
nothing beside it: figures, learning curves, detections beside the ground truth, where the deformable layers
sample, configuration, environment.

examples:
  dcnzoo report work_dirs/mask-rcnn
  dcnzoo report work_dirs/off work_dirs/v2 --labels off v2 --out compared.html
"""

import argparse
from pathlib import Path

from dcnzoo.cli._arguments import add_allow_partial
from dcnzoo.utils.errors import UserError, command

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from dcnzoo.report.write import write_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work_dirs", nargs="+", type=Path, metavar="WORK_DIR", help="of tools/train.py")
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="what each is called (default: its folder's name); those of one label are seeds of one setting",
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="of a single WORK_DIR (default: its last one)"
    )
    parser.add_argument("--images", type=int, default=5, help="with detections (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: cpu)")
    parser.add_argument("--out", type=Path, help="file (default: report.html in the first WORK_DIR)")
    add_allow_partial(parser)
    return parser.parse_args()


@command
def main() -> None:
    args = parse_args()
    if args.images < 0:
        raise UserError(f"--images: expected ≥ 0, got {args.images}")
    if args.labels is not None and len(args.labels) != len(args.work_dirs):
        raise UserError(f"--labels: expected {len(args.work_dirs)}, one per WORK_DIR, got {len(args.labels)}")
    if args.checkpoint is not None and len(args.work_dirs) > 1:
        raise UserError(f"--checkpoint: expected a single WORK_DIR with it, got {len(args.work_dirs)}")
    out = write_report(
        args.work_dirs,
        args.out,
        args.labels,
        args.checkpoint,
        images=args.images,
        device=args.device,
        allow_partial=args.allow_partial,
    )
    print(f"report: {out}")


if __name__ == "__main__":
    main()
