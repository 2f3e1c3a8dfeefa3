"""``dcnzoo export``, also ``tools/deployment/pytorch2onnx.py``."""

from pathlib import Path
from typing import Any

import click

from dcnzoo.cli import _command, _options, _types
from dcnzoo.cli._options import option
from dcnzoo.export.opsets import DEFAULT, DYNAMO, FIRST
from dcnzoo.utils.errors import show
from dcnzoo.utils.findings import shown
from dcnzoo.utils.formats import EXPORTED


@click.command(cls=_command.Command)
@_options.model
@_options.checkpoint_argument
@option(
    "--out", "--output-file", "path", type=_types.FileName(*EXPORTED), metavar="FILE",
    help="Output file (default: the name of the model and .onnx). .xml: for OpenVINO, also a .bin file.",
)  # fmt: skip
@_options.shape("Fixed size of the input (default: any number of images of any size).")
@option("--dynamic-export", is_flag=True, expose_value=False, hidden=True)  # now the default
@option("--opset-version", type=click.IntRange(DYNAMO[0], DYNAMO[-1]), default=DEFAULT)
@option("--verify/--no-verify", default=True, help="Compare with PyTorch; if results differ, write nothing.")
@option(
    "--test-img", "--input-img", type=_types.NAME, callback=_options.existing, metavar="IMAGE",
    help="For --verify.",
)  # fmt: skip
@option("--fp16", is_flag=True, help="Store weights in float16; for ONNX, also compute the network in it.")
@option("--int8", type=_types.NAME, metavar="DATA", help="Quantise to int8 for the images of a folder.")
@_options.num_images(100, "Number of images for --int8.")
@option("--skip-postprocess", "raw_outputs", is_flag=True, help="Export a single-stage head's raw outputs.")
@option("--deform-conv", type=click.Choice([*FIRST]), default="auto", help="Form of deformable convolution.")
@option(
    "--img-shape", type=click.Choice(["optional", "required", "none"]), default="optional",
    help="Input for the sizes of padded pictures: onnxruntime-web needs required; none: never padded.",
)  # fmt: skip
@_options.force
@_options.unsafe_load
@_options.allow_partial
@_options.cfg_options
def command(
    model: str, checkpoint: str | None, path: Path | None, verify: bool,
    test_img: str | None, fp16: bool, int8: str | None, num_images: int,
    img_shape: Any, cfg_options: dict, unsafe_load: bool, allow_partial: bool, **options: Any,
) -> None:  # fmt: skip
    """Export a detector to ONNX or OpenVINO.

    MODEL is a name in the zoo (dcnzoo zoo list), a config with CHECKPOINT or a work directory.

    \b
    examples:
      dcnzoo export CONFIG CHECKPOINT --out model.onnx --verify --test-img IMAGE
      dcnzoo export work_dirs/fruits --out model.onnx --int8 data/coco/val2017
      dcnzoo export work_dirs/fruits --out model.xml --shape 800 1216
    """
    import dcnzoo
    from dcnzoo.export.options import ExportOptions, Int8

    _options.refuse_exported(model)
    if path is None:
        path = Path(f"{Path(model).stem if Path(model).is_file() else Path(model).resolve().name}.onnx")
    if int8:
        _options.refuse("--int8", "fp16")
    else:
        _options.refuse_without("--int8", "num_images")
    if not verify:
        _options.refuse("--no-verify", "test_img")
    elif fp16 or int8:
        _options.refuse("--fp16 or --int8, which are not compared: measure the AP", "verify")
    checked = ExportOptions(
        path,
        precision=Int8(int8, num_images) if int8 else "float16" if fp16 else "float32",
        img_shape=None if img_shape == "none" else img_shape,
        verify=verify and (test_img or True),
        **options,
    )
    checked.check()
    detector: Any = dcnzoo.load(
        model, checkpoint, device="cpu",
        cfg_options=cfg_options, unsafe_load=unsafe_load, allow_partial=allow_partial,
    )  # fmt: skip
    from dcnzoo.utils.progress import waiting

    with waiting("exporting"):
        result = detector.export(checked)
    print(result)
    show(*shown(result.findings))
