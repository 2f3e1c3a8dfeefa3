"""``dcnzoo export``, also ``tools/deployment/pytorch2onnx.py``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option

if TYPE_CHECKING:
    import numpy as np
    from mmengine.structures import InstanceData
    from torch import Tensor, nn

    from dcnzoo.export.runtime import Session

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}  # of the output file
# With --dynamic-export: tracing would treat a map of one pixel, at stride 128, as a fixed size.
LEAST_TRACED = 256


@click.command(cls=_options.Command)
@_options.config
@click.argument("checkpoint", type=click.Path())
@option(
    "--out",
    aliases=["--output-file"],
    type=_options.FILE,
    metavar="FILE",
    help="Output file (default: tmp.onnx, tmp.xml for openvino, tmp.pt2 for pt2).",
)
@option(
    "--to",
    type=click.Choice(list(ENDINGS)),
    default="onnx",
    show_default=True,
    help="Output format. openvino: an .xml file and its .bin file, for OpenVINO without dcnzoo. pt2: a "
    "package compiled by AOTInductor, for Python or C++ with torch.",
)
@option(
    "--input-img",
    metavar="IMAGE",
    help="Image for tracing (default: that of --test-img, else a generated one).",
)
@option("--test-img", metavar="IMAGE", help="Image for --verify (default: that of --input-img).")
@_options.shape(
    "Height and width of the input, or one size for both (default: the test pipeline's output size)."
)
@option("--opset-version", type=click.IntRange(18, 21), default=19)
@option("--dynamic-export", is_flag=True, help="Allow any batch size, height and width at run time.")
@option("--show", is_flag=True, help="Print the graph; with --verify, draw both detections to a PNG.")
@option("--verify", is_flag=True, help="Compare with PyTorch; exit with status 1 if results differ.")
@option("--simplify", is_flag=True, help="Simplify the graph with onnxslim.")
@option("--fp16", is_flag=True, help="Store weights in float16; for ONNX, also compute the network in it.")
@option(
    "--int8",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Quantise the network to int8 for the images of a folder or of a COCO file.",
)
@_options.num_images(1, 100, "Number of images for --int8.")
@option("--skip-postprocess", is_flag=True, help="Export the raw outputs of a single-stage head.")
@_options.backend("Runtime to export for and to verify with.")
@option("--device", default="cpu", help="Device for --verify: cpu or cuda.")
@option(
    "--deform-conv",
    type=click.Choice(["auto", "native", "gathernd", "gatherelements", "gridsample"]),
    help="Form of deformable convolution (default: DeformConv if the opset has it, else GatherND).",
)
@_options.allow_partial
@_options.cfg_options
def command(
    config: str,
    checkpoint: str,
    out: Path | None,
    to: str,
    input_img: str | None,
    test_img: str | None,
    shape: tuple[int, int] | None,
    opset_version: int,
    dynamic_export: bool,
    show: bool,
    verify: bool,
    simplify: bool,
    fp16: bool,
    int8: Path | None,
    num_images: int,
    skip_postprocess: bool,
    backend: str,
    device: str,
    deform_conv: str | None,
    allow_partial: bool,
    cfg_options: dict,
) -> None:
    """Export a detector to ONNX, OpenVINO or AOTInductor.

    \b
    examples:
      dcnzoo export CONFIG CHECKPOINT --out model.onnx --dynamic-export --verify --test-img IMAGE
      dcnzoo export CONFIG CHECKPOINT --out model.xml --to openvino
      dcnzoo export CONFIG CHECKPOINT --out model.onnx --int8 data/coco/val2017
      dcnzoo export CONFIG CHECKPOINT --out model.pt2 --to pt2 --shape 800 1216
    """
    if show and skip_postprocess and verify:
        raise click.UsageError(
            "--show: not allowed with --verify and --skip-postprocess: there are no boxes to draw"
        )
    if to != "onnx":
        backend = {"openvino": "openvino", "pt2": "aotinductor"}[to]
    elif backend == "aotinductor":
        raise click.UsageError("--to: expected pt2 with --backend aotinductor, got onnx")
    only_onnx = {
        "--dynamic-export": dynamic_export,
        "--show": show,
        "--simplify": simplify,
        "--skip-postprocess": skip_postprocess,
        "--deform-conv": deform_conv,
        "--fp16": fp16,
        "--int8": int8,
    }
    if to == "pt2" and (given := [name for name, value in only_onnx.items() if value]):
        raise click.UsageError(f"{given[0]}: not allowed with --to pt2")
    if fp16 and int8:
        raise click.UsageError("--int8: not allowed with --fp16")
    if (fp16 or int8) and verify:
        raise click.UsageError("--verify: not allowed with --fp16 and --int8: compare the AP (dcnzoo test)")
    ending = ENDINGS[to]
    out = out or Path(f"tmp{ending}")
    if out.suffix != ending and (to != "onnx" or out.suffix in ENDINGS.values()):
        raise click.UsageError(f"--out: expected a name that ends in {ending} with --to {to}, got {out}")
    os.environ.setdefault("ORT_LOGGING_LEVEL", "3")

    from dcnzoo.export.smaller import to_float16, to_int8
    from dcnzoo.openmmlab.export import inputs
    from dcnzoo.openmmlab.export.detectors import compile_detector, export_detector
    from dcnzoo.utils.errors import UserError, one_line, user_errors
    from dcnzoo.utils.files import replacing, require_file

    if to != "pt2":
        more = {"onnxslim": simplify, "openvino": to == "openvino"}
        _require_packages("onnx", "onnxscript", *(name for name, needed in more.items() if needed))
    require_file(config, "config")
    require_file(checkpoint, "checkpoint")
    calibration = inputs.calibration_files(int8, num_images) if int8 else []
    with user_errors():
        cfg, detector = inputs.load_detector(config, checkpoint, cfg_options, allow_partial)
        try:
            found = inputs.find_preprocessing(cfg, detector)
        except ValueError as error:
            if shape is None:
                problem = f"--shape: expected height and width with this config: {one_line(error)}"
                raise UserError(problem) from error
            print(f"dcnzoo.export.Detector cannot use the file: {one_line(error)}")
            found = None
        picture = inputs.read_picture(input_img or test_img, found, shape)
        size = traced = inputs.input_shape(found, picture, shape)
        if shape is None and dynamic_export:
            factor = -(-LEAST_TRACED // min(size))
            traced = tuple(length * factor for length in size)
        _, images, _ = inputs.model_input(detector, found, picture, traced)
        metadata = found.to_metadata() if found else None
        with ExitStack() as stack:
            if to == "pt2":
                compile_detector(detector, images, out, metadata)
            else:
                if to == "onnx":
                    partial = stack.enter_context(replacing(out))
                else:
                    partial = Path(stack.enter_context(TemporaryDirectory())) / "model.onnx"
                export_detector(
                    detector,
                    images,
                    partial,
                    dynamic=dynamic_export,
                    skip_postprocess=skip_postprocess,
                    opset_version=opset_version,
                    deform_conv=deform_conv or "auto",
                    metadata=metadata,
                )
                if simplify:
                    _simplify(partial)
                shape = None if dynamic_export and found else tuple(images.shape[2:])
                names = _input_names(partial)
                if int8:
                    to_int8(partial, inputs.CalibrationInputs(detector, found, calibration, shape, names))
                elif to == "onnx" and fp16:
                    to_float16(partial)
                if show:
                    _print_graph(partial)
                if to == "openvino":
                    _write_ir(partial, out, fp16)
    written = [out, out.with_suffix(".bin")] if to == "openvino" else [out]
    megabytes = sum(file.stat().st_size for file in written) / 2**20
    text = "dynamic height and width" if dynamic_export else f"input {size[0]} × {size[1]}"
    opset = f", opset {opset_version}" if to == "onnx" else ""
    print(f"written: {', '.join(map(str, written))} ({megabytes:.1f} MiB), {text}{opset}")
    if not verify:
        return
    from dcnzoo.export.runtime import Session

    with user_errors():
        session = Session(str(out), backend, device)
        picture = inputs.read_picture(test_img or input_img, found, size)
    # for a dynamic graph, also another size and the other orientation
    others = [(size[0] + 64, size[1]), size[::-1]] if dynamic_export else []
    filled = "img_shape" not in session.inputs
    samples = [inputs.model_input(detector, found, picture, size)]
    samples += [inputs.model_input(detector, found, picture, other, filled) for other in others]
    if skip_postprocess:
        print(_compare_raw_outputs(detector, session, [images for _, images, _ in samples], backend))
    else:
        drawing = out.with_suffix(".png") if show else None
        where = test_img or input_img or "the generated image"
        print(_compare_detections(detector, session, samples, backend, where, drawing))


def _write_ir(path: Path, out: Path, float16: bool) -> None:
    """Convert an ONNX file to OpenVINO's IR; write the weights first."""
    from dcnzoo.export.openvino import save_ir
    from dcnzoo.utils.files import replacing

    with (
        replacing(out) as partial,
        replacing(out.with_suffix(".bin")) as partial_weights,
        TemporaryDirectory(dir=out.parent) as folder,
    ):
        whole = Path(folder) / "model.xml"  # OpenVINO requires this suffix
        save_ir(path, whole, float16)
        whole.with_suffix(".bin").replace(partial_weights)
        whole.replace(partial)


def _require_packages(*names: str) -> None:
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _input_names(path: Path) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(str(path), load_external_data=False).graph.input]


def _simplify(path: Path) -> None:
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(str(path)), str(path))


def _print_graph(path: Path) -> None:
    import onnx

    print(onnx.printer.to_text(onnx.load(str(path), load_external_data=False).graph))


def _compare_raw_outputs(detector: nn.Module, session: Session, batches: list[Tensor], backend: str) -> str:
    """Report the difference between the raw outputs of PyTorch and the graph.

    Raises:
        UserError: the difference is too large.
    """
    from dcnzoo.openmmlab.export.verify import raw_difference
    from dcnzoo.utils.errors import UserError

    difference = max(raw_difference(detector, images, session) for images in batches)
    text = f"raw outputs of PyTorch and {backend} differ by {difference:.1e} of their largest value"
    if not difference <= 1e-3:
        raise UserError(f"--verify: expected at most 1e-3: {text}")
    return text


def _compare_detections(
    detector: nn.Module,
    session: Session,
    samples: list[tuple[np.ndarray, Tensor, tuple[int, int]]],
    backend: str,
    where: str,
    drawing: Path | None,
) -> str:
    """Report how many detections of PyTorch and the graph agree, for results of ``inputs.model_input``.

    Raises:
        UserError: too few agree, or nothing is detected.
    """
    import numpy as np
    import torch

    from dcnzoo.openmmlab.export.verify import Agreement, compare, predict
    from dcnzoo.utils.errors import UserError

    total = Agreement(0, 0)
    for index, (picture, images, size) in enumerate(samples):
        sizes = [size]
        if index:
            images, sizes = torch.cat([images, images.flip(-1)]), [size, tuple(images.shape[2:])]
        if "img_shape" not in session.inputs:  # both treat padding as part of the image
            sizes = [tuple(images.shape[2:])] * len(images)
        expected, outputs = predict(detector, images, sizes), session(images.numpy(), np.array(sizes))
        total += compare(outputs, expected)
        if drawing and index == 0:
            _draw(drawing, picture, detector.classes, backend, expected[0], outputs)
    if total.found == 0:
        raise UserError(
            f"--verify: expected detections in {where}, got none from PyTorch or {backend}; "
            "use an image with objects: --test-img FILE"
        )
    text = f"{total.matched} of {total.found} detections agree between PyTorch and {backend}"
    if not total.holds:
        raise UserError(f"--verify: expected 99 % of the detections to agree: {text}")
    return text


def _draw(
    path: Path,
    picture: np.ndarray,
    classes: tuple[str, ...],
    backend: str,
    expected: InstanceData,
    outputs: dict[str, np.ndarray],
) -> None:
    """Draw the detections of PyTorch and of the graph side by side."""
    import numpy as np

    from dcnzoo.report import Instances, plot_detections
    from dcnzoo.utils.files import replacing

    height, width = picture.shape[:2]
    kept = outputs["labels"][0] >= 0
    dets, labels = outputs["dets"][0][kept], outputs["labels"][0][kept]
    masks = outputs["masks"][0][kept, :height, :width] >= 128 if "masks" in outputs else None
    torch_masks = expected.masks.numpy()[:, :height, :width] if "masks" in expected else None
    columns = {
        "PyTorch": [
            Instances(expected.bboxes.numpy(), expected.labels.numpy(), torch_masks, expected.scores.numpy())
        ],
        backend: [Instances(dets[:, :4], labels, masks, dets[:, 4])],
    }
    count = max(int(column.labels.max(initial=0)) for (column,) in columns.values()) + 1
    palette = [tuple(int(c) for c in np.random.default_rng(i).integers(64, 255, 3)) for i in range(count)]
    names = classes or [str(i) for i in range(count)]
    figure = plot_detections([picture[..., ::-1]], columns, names, palette, 0.3)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    print(f"drawn: {path}")
