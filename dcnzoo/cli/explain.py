"""``dcnzoo explain``."""

from pathlib import Path
from typing import Any

import click

from dcnzoo.cli import _command, _options, _types
from dcnzoo.cli._options import option
from dcnzoo.utils.errors import show
from dcnzoo.utils.text import columns


@click.command(cls=_command.Command)
@_options.model
@click.argument("image", type=_types.NAME, callback=_options.existing, is_eager=True)
@_options.loading
@_options.channels_last
@option("--at", type=_types.Numbers(2), metavar="X,Y", help="Pixel (default: centre of the best detection).")
@option("--box", type=_types.Numbers(4), metavar="X1,Y1,X2,Y2", help="All outputs in this box.")
@option(
    "--layer", metavar="NAME", help="Only this layer (default: all, and the receptive field of the last)."
)
@option(
    "--receptive-fields", "further", type=click.IntRange(min=0), default=12, metavar="N",
    help="Number of other places of the page whose receptive field is computed.",
)  # fmt: skip
@option(
    "--out", type=_types.FileName(".html"), default="explain.html",
    help="Output file, a page that follows the pointer.",
)  # fmt: skip
@_options.force
def command(
    model: str, image: str, at: list[float] | None, box: list[float] | None, layer: str | None,
    further: int, out: Path, force: bool, **loading: Any,
) -> None:  # fmt: skip
    """Show the sampling points of a detector.

    MODEL is a name in the zoo (dcnzoo zoo list), a config with --checkpoint or a work directory.

    For one position in an image, shows the sampling points of each deformable layer, the effective receptive
    field, and the size of each layer's offsets.

    Draws the first offset group of DCN and DCNv2 (dcnzoo's and mmcv's), PackedDeformConv2d, DCNv3 and DCNv4,
    and the extractors of ViT-Adapter. Other deformable attention appears only in the table.

    \b
    examples:
      dcnzoo explain faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco street.jpg
      dcnzoo explain CONFIG street.jpg --checkpoint epoch_12.pth --at 120,80 --out points.html
    """
    if box:
        _options.refuse("--box", "at")
    _options.output_file(out, force=force)
    _options.refuse_exported(model)
    import dcnzoo
    from dcnzoo.report.explain import Box, render_explanation
    from dcnzoo.report.explain_detector import explain
    from dcnzoo.utils.files import write_text

    detector: Any = dcnzoo.load(model, **loading)
    explanation = explain(detector, image, Box(*box) if box else None, layer, further, at)
    title = f"{Path(image).name}: where {Path(model).stem} samples"
    write_text(out, render_explanation(explanation, title, f"dcnzoo {dcnzoo.__version__}"))
    show(*columns(explanation.table(), numbers=True), f"written: {out}")
