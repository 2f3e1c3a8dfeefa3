"""``dcnzoo export``, also ``tools/deployment/pytorch2onnx.py``."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option
from dcnzoo.cli._terminal import print_findings

if TYPE_CHECKING:
    import numpy as np
    from mmengine.structures import InstanceData
    from torch import Tensor, nn

    from dcnzoo.detect.session import Session

# With --dynamic-export: tracing would treat a map of one pixel, at stride 128, as a fixed size, and mmcv pads
# maps of two for a deformable convolution.
LEAST_TRACED = 512
ONLY_ONNX = ("--dynamic-export", "--simplify", "--skip-postprocess", "--deform-conv", "--fp16", "--int8")


@click.command(cls=_options.Command)
@_options.model
@_options.checkpoint_argument
@option(
    "--out",
    type=_options.FileName(*_options.EXPORTED),
    default="tmp.onnx",
    metavar="FILE",
    help="Output file. Its ending determines the format. .onnx; .xml: also a .bin file, for OpenVINO without "
    "dcnzoo; .pt2: a package compiled by AOTInductor, for Python or C++ with torch.",
)
@option(
    "--test-img",
    metavar="IMAGE",
    help="Image for tracing and --verify (default: a generated one).",
)
@_options.shape("Size of the input (default: the test pipeline's output size).")
@option("--opset-version", type=click.IntRange(18, 21), default=19)
@option("--dynamic-export", is_flag=True, help="Allow any batch size, height and width at run time.")
@option("--verify", is_flag=True, help="Compare with PyTorch; exit with status 1 if results differ.")
@option("--show", is_flag=True, help="With --verify, draw the detections of both to a PNG.")
@option("--simplify", is_flag=True, help="Simplify the graph with onnxslim.")
@option("--fp16", is_flag=True, help="Store weights in float16; for ONNX, also compute the network in it.")
@option(
    "--int8",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Quantise the network to int8 for the images of a folder or of a COCO file.",
)
@_options.num_images(100, "Number of images for --int8.")
@option("--skip-postprocess", is_flag=True, help="Export the raw outputs of a single-stage head.")
@option(
    "--deform-conv",
    type=click.Choice(["auto", "native", "gathernd", "gatherelements", "gridsample"]),
    help="Form of deformable convolution (default: DeformConv if the opset has it, else GatherND).",
)
@option(
    "--for",
    "runtime",
    type=click.Choice(["onnxruntime", "openvino", "tensorrt", "coreml"]),
    help="Runtime to check an ONNX file for (default: onnxruntime; --check: all). For tensorrt, deformable "
    "convolution becomes GatherND by default.",
)
@option(
    "--check", is_flag=True, help="Only list the known problems of MODEL, an ONNX file, and their sources."
)
@_options.force
@_options.loading
def command(
    model: str,
    weights: str | None,
    checkpoint: str | None,
    out: Path,
    test_img: str | None,
    shape: tuple[int, int] | None,
    verify: bool,
    show: bool,
    int8: Path | None,
    num_images: int,
    runtime: str | None,
    check: bool,
    device: str,
    force: bool,
    **options: Any,
) -> None:
    """Export a detector to ONNX, OpenVINO or AOTInductor.

    MODEL is a name in the zoo (dcnzoo zoo list), a config with CHECKPOINT or a work directory. --verify runs
    the file on --device.

    \b
    examples:
      dcnzoo export CONFIG CHECKPOINT --out model.onnx --dynamic-export --verify --test-img IMAGE
      dcnzoo export faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco --out model.xml
      dcnzoo export work_dirs/fruits --out model.onnx --int8 data/coco/val2017
      dcnzoo export work_dirs/fruits --out model.pt2 --shape 800 1216
      dcnzoo export --check model.onnx --for tensorrt
    """
    if check:
        _print_problems(Path(model), *[runtime] * bool(runtime))
        return
    pairs = [
        ("--int8", "--fp16"),
        ("--verify", "--fp16"),
        ("--verify", "--int8"),
        ("--show", "--skip-postprocess"),
    ]
    _options.refuse_together(pairs)
    for name in ONLY_ONNX if out.suffix == ".pt2" else ():
        if click.get_current_context().params[name[2:].replace("-", "_")]:
            raise click.UsageError(f"{name}: not allowed with --out {out}")
    claim = _options.output_files(force)
    claim(out)
    if out.suffix == ".xml":
        claim(out.with_suffix(".bin"))
    if show:
        claim(out.with_suffix(".png"))
    os.environ.setdefault("ORT_LOGGING_LEVEL", "3")
    if runtime == "tensorrt":
        options["deform_conv"] = options["deform_conv"] or "gathernd"

    import dcnzoo
    from dcnzoo.detect.session import ENDINGS, Session
    from dcnzoo.openmmlab.export import inputs
    from dcnzoo.utils.errors import UserError, one_line, user_errors

    if out.suffix != ".pt2":
        needed = {"onnxscript": True, "onnxslim": options["simplify"], "openvino": out.suffix == ".xml"}
        for name in filter(needed.get, needed):  # before the model is loaded
            import_module(name)
    files = inputs.calibration_files(int8, num_images) if int8 else []
    loading = {key: options.pop(key) for key in ("cfg_options", "unsafe_load", "allow_partial")}
    dynamic = options["dynamic"] = options.pop("dynamic_export")
    if out.suffix == ".pt2":
        options = {"fp16": options["fp16"], "simplify": False}
    else:
        options["deform_conv"] = options["deform_conv"] or "auto"
    with user_errors():
        weights = checkpoint or weights
        loaded = dcnzoo.load(model, checkpoint=weights, device="cpu", channels_last=False, **loading)
        detector = inputs.predicting_part(loaded.model)
        try:
            found = inputs.find_preprocessing(loaded.model.cfg, detector, loaded.classes)
        except ValueError as error:
            if shape is None:
                problem = f"--shape: expected height and width with this config: {one_line(error)}"
                raise UserError(problem) from error
            print(f"dcnzoo.load cannot use the file: {one_line(error)}")
            found = None
        picture = inputs.read_picture(test_img, found, shape)
        size = traced = inputs.input_shape(found, picture, shape)
        if shape is None and dynamic:
            factor = -(-LEAST_TRACED // min(size))
            traced = tuple(length * factor for length in size)
        _, images, _ = inputs.model_input(detector, found, picture, traced)
        fixed = None if dynamic and found else tuple(images.shape[2:])
        calibration = inputs.calibration_inputs(detector, found, files, fixed) if int8 else None
        metadata = found.to_metadata() if found else None
        _write(detector, images, out, calibration, metadata=metadata, **options)
    written = [out, out.with_suffix(".bin")] if out.suffix == ".xml" else [out]
    megabytes = sum(file.stat().st_size for file in written) / 2**20
    text = "dynamic height and width" if dynamic else f"input {size[0]} × {size[1]}"
    print(f"written: {', '.join(map(str, written))} ({megabytes:.1f} MiB), {text}")
    if out.suffix == ".onnx":
        _print_problems(out, runtime or "onnxruntime")
    if not verify:
        return
    backend = ENDINGS[out.suffix]
    with user_errors():
        session = Session(str(out), backend, device)
        picture = inputs.read_picture(test_img, found, size)
    # for a dynamic graph, also another size and the other orientation
    others = [(size[0] + 64, size[1]), size[::-1]] if dynamic else []
    filled = "img_shape" not in session.inputs
    samples = [inputs.model_input(detector, found, picture, size)]
    samples += [inputs.model_input(detector, found, picture, other, filled) for other in others]
    if options.get("skip_postprocess"):
        print(_compare_raw_outputs(detector, session, [images for _, images, _ in samples], backend))
    else:
        drawing = out.with_suffix(".png") if show else None
        where = test_img or "the generated image"
        print(_compare_detections(detector, session, samples, backend, where, drawing, loaded.classes))


def _print_problems(path: Path, *runtimes: str) -> None:
    """Print the known problems of an ONNX file."""
    from dcnzoo.export.known_problems import check
    from dcnzoo.utils.errors import user_errors

    with user_errors():
        problems = check(path, *runtimes)
    print_findings(problems)
    if not problems:
        print(f"{path}: no known problems in {', '.join(runtimes) or 'any runtime'}")


def _write(
    detector: nn.Module,
    images: Tensor,
    out: Path,
    calibration: Iterable[dict[str, np.ndarray]] | None,
    *,
    fp16: bool,
    simplify: bool,
    **options: Any,
) -> None:
    """Write the file in the format of its ending.

    Args:
        calibration: samples for int8.
        options: those of :func:`dcnzoo.openmmlab.export.detectors.export_detector`.
    """
    from dcnzoo.export.openvino import save_ir
    from dcnzoo.export.precision import to_float16, to_int8
    from dcnzoo.openmmlab.export.detectors import export_detector
    from dcnzoo.utils.files import replacing

    with TemporaryDirectory() as folder:
        whole = Path(folder) / ("model.pt2" if out.suffix == ".pt2" else "model.onnx")
        export_detector(detector, images, whole, **options)
        if simplify:
            import onnx
            import onnxslim

            onnx.save(onnxslim.slim(str(whole)), str(whole))
        if calibration is not None:
            to_int8(whole, calibration)
        elif out.suffix == ".onnx" and fp16:
            to_float16(whole)
        if out.suffix == ".xml":
            save_ir(whole, out, fp16)
        else:
            with replacing(out) as partial:
                shutil.copyfile(whole, partial)


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
    classes: tuple[str, ...] = (),
) -> str:
    """Report how many detections of PyTorch and the graph agree, for results of ``inputs.model_input``.

    Args:
        drawing: file for a picture of both.

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
            _draw(drawing, picture, classes, expected[0], outputs)
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
    expected: InstanceData,
    outputs: dict[str, np.ndarray],
) -> None:
    """Draw the detections of PyTorch, at the left, and of the graph, at the right."""
    import numpy as np
    from PIL import Image

    from dcnzoo.detect.outputs import rescale_detections
    from dcnzoo.openmmlab.detector import to_detections
    from dcnzoo.utils.files import replacing

    size = picture.shape[:2]
    of_graph = rescale_detections({name: value[0] for name, value in outputs.items()}, size, size, {})
    sides = []
    for result in (to_detections(expected, 0.3), of_graph.select(of_graph.scores >= 0.3)):
        masks = None if result.masks is None else result.masks[:, : size[0], : size[1]]
        shown = dataclasses.replace(result, masks=masks, classes=classes, image=picture[..., ::-1])
        sides.append(np.asarray(shown.draw()))
    with replacing(path) as partial:
        Image.fromarray(np.hstack(sides)).save(partial, "PNG")
    print(f"drawn: {path}")
