"""Show where a detector samples: ``python tools/analysis/visualize_offsets.py IMAGE --model NAME``.

Also ``dcnzoo explain``. For one place of an image: the sampling points of each deformable layer, the
effective receptive field, and how large the offsets are, layer by layer. A name that ends in .html gives
a page on which the place follows the pointer, one that ends in .png a figure.

Drawn are DCN and DCNv2 (dcnzoo's, mmcv's), PackedDeformConv2d, DCNv3 and DCNv4, the first group of
offsets. Deformable attention is in the table only.

examples:
  dcnzoo explain street.jpg --model faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco
  dcnzoo explain street.jpg --model CONFIG --checkpoint epoch_12.pth --at 120,80 --out points.png
"""

import argparse
import io
from pathlib import Path

import dcnzoo
from dcnzoo.utils.errors import UserError, command, user_errors

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from rich.console import Console
from rich.table import Table

from dcnzoo.cli._arguments import add_model_arguments, load_model
from dcnzoo.cli._images import require_images
from dcnzoo.report.explain import Box, Explanation, plot_explanation
from dcnzoo.report.explain_page import render_explanation
from dcnzoo.utils.files import write_bytes, write_text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", metavar="IMAGE", help="image file")
    add_model_arguments(parser)
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--at",
        type=numbers(2),
        metavar="X,Y",
        help="pixel of the image (default: the middle of the best detection, or of the image)",
    )
    place.add_argument("--box", type=numbers(4), metavar="X1,Y1,X2,Y2", help="all outputs in this box")
    parser.add_argument("--layer", metavar="NAME", help="only this one (default: all; the field of the last)")
    parser.add_argument(
        "--out", type=Path, default="explain.html", help=".html or .png (default: %(default)s)"
    )
    return parser.parse_args()


def numbers(count: int):
    def parse(text: str) -> list[float]:
        values = [float(part) for part in text.split(",")]
        if len(values) != count:
            raise ValueError
        return values

    parse.__name__ = f"{count} numbers with commas between them"  # what argparse calls the type
    return parse


@command
def main() -> None:
    args = parse_args()
    if args.out.suffix not in (".html", ".png"):
        raise UserError(f"--out: expected a name that ends in .html or .png, got {args.out}")
    require_images([args.image])
    box = args.box or (args.at and [*args.at, *args.at])
    detector = load_model(args)
    from dcnzoo.report.detector import explain

    with user_errors():
        explanation = explain(detector, args.image, Box(*box) if box else None, args.layer)
    title = f"{Path(args.image).name}: where {Path(args.model).stem} samples"
    if args.out.suffix == ".html":
        page = render_explanation(explanation, title, f"dcnzoo {dcnzoo.__version__}")
        write_text(args.out, page)
    else:
        buffer = io.BytesIO()
        plot_explanation(explanation).savefig(buffer, format="png", dpi=150)
        write_bytes(args.out, buffer.getvalue())
    show(explanation)
    print(f"written: {args.out}")


def show(explanation: Explanation) -> None:
    head, *rows = explanation.table()
    table = Table(*head, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
