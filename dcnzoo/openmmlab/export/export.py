"""Export a detector: trace it, write the file, compare it with PyTorch, move it to its place.

:func:`make_plan` decides what is traced, :func:`write_detector` writes it, :func:`verified` compares. The
traced module is in :mod:`dcnzoo.openmmlab.export.predict`, its parts are in
:mod:`dcnzoo.openmmlab.export.rules`.
"""

import dataclasses
import json
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.utils import get_test_pipeline_cfg
from torch import Tensor
from torch.export import Dim

from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.outputs import MASK_THRESHOLD, SCORE_THRESHOLD_KEY
from dcnzoo.detect.pictures import read
from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.detect.session import Session
from dcnzoo.export.onnx import export_onnx
from dcnzoo.export.options import ExportOptions, Int8
from dcnzoo.export.result import Agreement, ExportResult
from dcnzoo.export.vmap import symbolic_batches
from dcnzoo.export.writing import finish_file, has_default_size
from dcnzoo.openmmlab.calls import tracing
from dcnzoo.openmmlab.classes import require_names
from dcnzoo.openmmlab.export.pictures import calibration_inputs, pictures_to_verify, predicting_part
from dcnzoo.openmmlab.export.predict import Predictor, RawHead, TracedRawHead
from dcnzoo.openmmlab.export.preprocessing import preprocessing_of
from dcnzoo.openmmlab.export.verify import verify, verify_raw_outputs
from dcnzoo.utils.errors import one_line
from dcnzoo.utils.files import partial_folder, replacing
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.progress import name_step

# With dynamic sizes, tracing would treat a map of one pixel, at stride 128, as a fixed size, and mmcv pads
# maps of two for a deformable convolution.
LEAST_TRACED = 512
# of raw outputs, to compare a dynamic file with: no example has this size, and each level has several pixels
OTHER_SHAPE = (2, 3, 384, 640)


@dataclass(frozen=True)
class Plan:
    """The traced model of an export, its example, and what the file says of itself.

    Attributes:
        example: height and width of the images that are traced.
        shape: height and width of the file's input; None if they are dynamic.
        preprocessing: None if the test pipeline cannot be stored.
        findings: what the file cannot do.
    """

    model: Predictor | RawHead
    example: tuple[int, int]
    shape: tuple[int, int] | None
    preprocessing: Preprocessing | None
    metadata: Mapping[str, str]
    findings: tuple[Finding, ...]


def export_detector(detector: BaseDetector, options: ExportOptions) -> ExportResult:
    """Export a detector: see :meth:`dcnzoo.openmmlab.detector.TorchDetector.export`."""
    options.check()
    plan = make_plan(detector, options)
    compared: list[np.ndarray] = []
    calibration: Iterable[Mapping[str, np.ndarray]] = ()
    if plan.preprocessing is not None:
        # before the work: a picture may be damaged
        if options.compares_detections:
            compared = pictures_to_verify(options.verify, plan.preprocessing)
        if isinstance(options.precision, Int8):
            for file in options.precision.files:
                read(file)
            calibration = calibration_inputs(plan.preprocessing, options.precision.files, plan.shape)
    path = options.files[0]
    folder = path.parent if path.parent.exists() else path.parent.parent
    with partial_folder(folder) as beside:
        written = write_detector(
            plan.model,
            torch.zeros(1, 3, *plan.example),
            dataclasses.replace(options, path=beside / path.name),
            dynamic=plan.shape is None,
            metadata=plan.metadata,
            calibration=calibration,
        )
        name_step("verify")
        agreement = verified(detector, plan, options, written, compared) if options.verify else None
        for file in reversed(written):  # the weights of an IR before it
            with replacing(path.with_name(file.name)) as partial:
                shutil.move(file, partial)
    return ExportResult(options.files, plan.shape, plan.findings, agreement)


def verified(
    detector: BaseDetector,
    plan: Plan,
    options: ExportOptions,
    files: tuple[Path, ...],
    pictures: Sequence[np.ndarray],
) -> Agreement | None:
    """Open the written files and run them; compare with PyTorch, except for float16 and int8.

    Raises:
        ValueError: the runtime cannot open or run the file, or its results differ.
    """
    if options.compares_detections:
        agreement = verify(detector, ExportResult(files, plan.shape).load(device="cpu"), pictures)
        if not agreement.number and options.verify is not True:
            raise ValueError(
                "verify: expected a picture with objects, got none from PyTorch or the file: "
                "try another picture, or a lower model.test_cfg.score_thr"
            )
        return agreement
    session = Session(files[0], device="cpu")
    if options.compares:
        shapes = [(1, 3, *plan.example)]
        if plan.shape is None:
            shapes.append(OTHER_SHAPE)
        verify_raw_outputs(predicting_part(detector.model), session, shapes)
        return None
    try:
        session(np.zeros((1, 3, *plan.example), np.float32))
    except Exception as error:  # each runtime has its own class of errors
        expected = f"expected a file that {session.backend} runs"
        raise ValueError(f"precision: {expected}, got {one_line(error)}") from error
    return None


def make_plan(detector: BaseDetector, options: ExportOptions) -> Plan:
    """Check that a detector can be exported with these options."""
    if detector.device != "cpu":
        raise ValueError(f"device: expected a detector on the CPU (device='cpu'), got {detector.device}")
    detector.require_three_channels("export")
    network = predicting_part(detector.model)
    findings: list[Finding] = []
    preprocessing = _preprocessing(detector, network, options, findings)
    sized = options.img_shape is not None
    model = TracedRawHead(network) if options.raw_outputs else Predictor(network, sized=sized)
    require_names(detector.model.cfg.get("model", {}), detector.classes)
    example = _example_size(options, preprocessing)
    shape = example if options.shape or model.one_size else None
    if shape is None:
        factor = -(-LEAST_TRACED // min(example))
        example = (example[0] * factor, example[1] * factor)
    elif options.shape is None:
        text = f"the size of the input is fixed, {shape[0]} × {shape[1]}"
        findings.append(Finding(type(network).__name__, text, stops=False))
    metadata = {SCORE_THRESHOLD_KEY: str(detector.score_threshold)}
    if preprocessing is not None:
        metadata |= preprocessing.to_metadata()
    if isinstance(model, RawHead):
        metadata |= {"dcnzoo.strides": json.dumps(model.strides)}
    elif model.mask_threshold is not None:
        metadata |= {MASK_THRESHOLD: str(model.mask_threshold)}
    return Plan(model, example, shape, preprocessing, metadata | dict(options.metadata), tuple(findings))


def _preprocessing(
    detector: BaseDetector, network: Any, options: ExportOptions, findings: list[Finding]
) -> Preprocessing | None:
    """Return the preprocessing of the file; None, with a finding, if the test pipeline has other steps."""
    try:
        pipeline = get_test_pipeline_cfg(detector.model.cfg)
        return preprocessing_of(pipeline, network.data_preprocessor, detector.classes)
    except ValueError as error:
        problem = f"expected another test pipeline: {one_line(error)}"
        if isinstance(options.precision, Int8):
            raise ValueError(f"precision: {problem}") from error
        if options.compares_detections:
            raise ValueError(
                f"verify: {problem}; with verify=False, the file is for other programs"
            ) from error
        text = f"dcnzoo.load cannot use the file: {one_line(error)}"
        findings.append(Finding(type(network).__name__, text, stops=False))
        return None


def _example_size(options: ExportOptions, preprocessing: Preprocessing | None) -> tuple[int, int]:
    """Return height and width of the input to trace with, which the detector pads to a multiple."""
    height, width = options.shape or (640, 640)
    if preprocessing is not None:
        scale = preprocessing.scale or (width, height)
        height, width = options.shape or preprocessing.padded(scale[::-1])
        divisor = preprocessing.pad_divisor
        height, width = height + -height % divisor, width + -width % divisor
    if options.shape and (height, width) != tuple(options.shape):
        asked = " × ".join(map(str, options.shape))
        warnings.warn(
            f"shape: the file has the input {height} × {width} in place of {asked}: the detector pads its "
            f"inputs to multiples of {divisor}",
            stacklevel=2,
        )
    return height, width


def write_detector(
    model: Predictor | RawHead,
    images: Tensor,
    options: ExportOptions,
    *,
    dynamic: bool,
    metadata: Mapping[str, str],
    calibration: Iterable[Mapping[str, np.ndarray]] = (),
) -> tuple[Path, ...]:
    """Trace a model and write it to a file. An error leaves a file that is not complete.

    Args:
        images: an example, [N, 3, H, W].
        dynamic: batch size, height and width are dynamic; otherwise they are the example's.
    """
    if dynamic and len(images) == 1:
        images = images.repeat(2, 1, 1, 1)  # torch.export would fix a batch size of 1
    one_row = dynamic and has_default_size(options)
    sizes = torch.tensor([images.shape[-2:]] * (1 if one_row else len(images)))
    args = (images, sizes)[: len(model.input_names)]
    # the rows of img_shape have the name of the images' axis
    rows = {} if one_row else {0: Dim.DYNAMIC}
    shapes = ({0: "batch", 2: "height", 3: "width"}, rows)[: len(args)]
    graph = options.files[0].with_suffix(".onnx")
    name_step("trace")
    with tracing(model.detector), symbolic_batches():
        model.eval()
        names = model.names(images) if isinstance(model, RawHead) else list(model.output_names)
        export_onnx(
            model,
            args,
            graph,
            opset_version=options.opset_version,
            deform_conv=options.deform_conv,
            dynamic_shapes=shapes if dynamic else None,
            input_names=list(model.input_names),
            output_names=names,
            metadata=metadata,
        )
    name_step("write")
    return finish_file(graph, options, calibration)
