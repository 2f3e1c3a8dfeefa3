"""Export a detector to ONNX: ``python tools/deployment/pytorch2onnx.py CONFIG CHECKPOINT [options]``.

Also ``dcnzoo export``.

examples:
  dcnzoo export CONFIG CHECKPOINT --output-file model.onnx --dynamic-export --verify --test-img IMAGE
  dcnzoo export CONFIG CHECKPOINT --output-file model.onnx --backend openvino
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dcnzoo.cli._arguments import add_allow_partial, add_cfg_options, add_config
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.utils.errors import UserError, command, one_line, user_errors
from dcnzoo.utils.files import require_file

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
import cv2
import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

import dcnzoo.models  # noqa: F401  registers what a config names

if TYPE_CHECKING:
    from dcnzoo.export.picture import Preprocessing

OPSETS = range(18, 22)

# With --dynamic-export: a map of one pixel, at stride 128, would be taken for one of a fixed size.
LEAST_TRACED = 256


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--output-file", default="tmp.onnx", help="the ONNX file (default: tmp.onnx)")
    parser.add_argument(
        "--input-img", help="image to trace the model with (default: the test image, else a drawn one)"
    )
    parser.add_argument("--test-img", help="image for --verify (default: the input image)")
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        help="height and width of the input (default: those that the test pipeline gives the input image)",
    )
    parser.add_argument("--opset-version", type=int, default=19, help="18 to 21 (default: 19)")
    parser.add_argument(
        "--dynamic-export", action="store_true", help="batch, height and width may be others at run time"
    )
    parser.add_argument(
        "--show", action="store_true", help="print the graph; with --verify, draw both detections to a PNG"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare with PyTorch; a difference is exit status 1"
    )
    parser.add_argument("--simplify", action="store_true", help="simplify the graph with onnxslim")
    parser.add_argument(
        "--skip-postprocess", action="store_true", help="export a single-stage head's raw outputs"
    )
    parser.add_argument(
        "--backend",
        choices=["onnxruntime", "openvino", "tensorrt"],
        default="onnxruntime",
        help="the runtime to export for and to verify with (default: onnxruntime)",
    )
    parser.add_argument(
        "--device", help="where --verify runs the graph: cpu or cuda (default: cpu; for tensorrt cuda)"
    )
    parser.add_argument(
        "--deform-conv",
        choices=["auto", "native", "gathernd", "gatherelements", "gridsample"],
        help="what deformable convolution becomes (default: DeformConv where opset and backend have it, "
        "else GatherND)",
    )
    add_allow_partial(parser)
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.shape is not None:
        if len(args.shape) > 2 or min(args.shape) < 1:
            parser.error(f"--shape: expected one or two positive numbers, got {args.shape}")
        args.shape = (args.shape[0], args.shape[-1])
    args.input_img = args.input_img or args.test_img
    if args.show and args.skip_postprocess and args.verify:
        parser.error("--show: expected no --skip-postprocess with --verify: there are no boxes to draw")
    if not OPSETS[0] <= args.opset_version <= OPSETS[-1]:
        nearest = min(OPSETS, key=lambda opset: abs(opset - args.opset_version))
        expected = f"expected {OPSETS[0]} to {OPSETS[-1]} (nearest: {nearest})"
        parser.error(f"--opset-version: {expected}, got {args.opset_version}")
    if args.deform_conv == "native" and args.backend == "openvino":
        parser.error(
            "--deform-conv: expected gathernd, gatherelements or gridsample for openvino, which has no "
            "DeformConv, got native"
        )
    args.device = args.device or ("cuda" if args.backend == "tensorrt" else "cpu")
    return args


def load_detector(args: argparse.Namespace) -> tuple[Config, nn.Module]:
    """The config and the detector, which knows its classes as ``detector.classes``."""
    from dcnzoo.openmmlab.detector import build

    cfg = read_config_file(args.config)
    cfg.merge_from_dict(args.cfg_options)
    if "backbone" in cfg.model:
        cfg.model.backbone.init_cfg = None  # the checkpoint has all weights
    detector, meta = build(cfg, args.checkpoint, allow_partial=args.allow_partial)
    detector.classes = class_names(cfg, meta)
    return cfg, detector


def test_dataset(cfg: Config) -> dict:
    dataset = cfg.get("test_dataloader", {}).get("dataset", {})
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset


def class_names(cfg: Config, meta: dict) -> tuple[str, ...]:
    """The checkpoint's if it has them, else the data set's; none if nobody knows."""
    from mmdet.registry import DATASETS

    dataset = test_dataset(cfg)
    known = [
        {key.lower(): value for key, value in meta.get("dataset_meta", meta).items()},
        dataset.get("metainfo") or {},
        getattr(DATASETS.get(dataset.get("type", "")), "METAINFO", {}),
    ]
    return tuple(next((found["classes"] for found in known if found.get("classes")), ()))


def preprocessing(cfg: Config, detector: nn.Module, args: argparse.Namespace) -> Preprocessing | None:
    """What the test pipeline does with an image; None if that is more than can be described."""
    from dcnzoo.export.picture import Preprocessing

    try:
        pipeline = test_dataset(cfg).get("pipeline", [])
        return Preprocessing.of(pipeline, detector.data_preprocessor, detector.classes)
    except ValueError as error:
        if args.shape is None:
            raise UserError(
                f"--shape: expected height and width with this config: {one_line(error)}"
            ) from error
        print(f"dcnzoo.export.Detector cannot use the file: {one_line(error)}")
        return None


def load_picture(path: str | None, found: Preprocessing | None, args: argparse.Namespace) -> np.ndarray:
    """[H, W, 3], uint8, BGR: a file, or without one the demo's shapes in the size of the test pipeline."""
    if path is None:
        from dcnzoo.data.shapes import ShapesSpec, draw_image

        width, height = (found and found.scale) or (args.shape or (640, 640))[::-1]
        side = max(128, min(height, width))
        square, _ = draw_image(ShapesSpec(size=side), "val", 0)
        square = np.tile(square, (-(-height // side), -(-width // side), 1))
        return np.ascontiguousarray(square[:height, :width])
    require_file(path, "image")
    picture = cv2.imread(path)
    if picture is None:
        raise UserError(f"image: expected a picture that OpenCV reads, got {path}")
    return picture


def input_shape(
    found: Preprocessing | None, picture: np.ndarray, args: argparse.Namespace
) -> tuple[int, int]:
    """Height and width: what is asked for, else those of the picture after the test pipeline; padded."""
    if found is None:
        return args.shape
    if args.shape is None:
        return found(picture)[0].shape[2:]
    return tuple(size + -size % found.pad_divisor for size in args.shape)


def load_image(
    detector: nn.Module, found: Preprocessing | None, picture: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, Tensor, tuple[int, int]]:
    """What the model sees.

    Returns:
        the picture after resizing  # [h, w, 3], uint8, BGR
        the input  # [1, 3, *shape]
        height and width of the image in it, as the test pipeline leaves it
    """
    if found is None:  # the test pipeline cannot be reproduced
        seen = cv2.resize(picture, shape[::-1])
        data = {"inputs": [torch.from_numpy(seen.transpose(2, 0, 1).copy())], "data_samples": None}
        return seen, detector.data_preprocessor(data, False)["inputs"], shape
    inputs, size = found(picture, shape)
    rest = [(0, whole - part) for whole, part in zip(shape, inputs.shape[2:], strict=True)]
    inputs = torch.from_numpy(np.pad(inputs, [(0, 0), (0, 0), *rest]))
    return cv2.resize(picture, size[::-1]), inputs, found.padded(size, shape)


def export(
    args: argparse.Namespace, found: Preprocessing | None, detector: nn.Module, images: Tensor
) -> None:
    """Writes the output file, only when all that is asked for is done."""
    import onnx

    from dcnzoo.export.exporters import save
    from dcnzoo.openmmlab.export.detectors import export_detector

    with TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx" if args.simplify else args.output_file
        export_detector(
            detector,
            images,
            path,
            dynamic=args.dynamic_export,
            skip_postprocess=args.skip_postprocess,
            opset_version=args.opset_version,
            deform_conv=args.deform_conv or ("gathernd" if args.backend == "openvino" else "auto"),
            metadata=found.to_metadata() if found else None,
        )
        if args.simplify:
            import onnxslim

            save(onnxslim.slim(path), args.output_file)
    if args.show:
        print(onnx.printer.to_text(onnx.load(args.output_file, load_external_data=False).graph))


def build_engine(args: argparse.Namespace, images: Tensor) -> str:
    """Writes the engine beside the ONNX file where TensorRT and a GPU are; says what it did."""
    import onnx

    from dcnzoo.export import tensorrt

    reason = tensorrt.why_not()
    if reason is not None:
        return f"TensorRT engine: skipped: {reason}"
    shapes = {"input": tuple(images.shape), "img_shape": (len(images), 2)}
    known = {value.name for value in onnx.load(args.output_file, load_external_data=False).graph.input}
    shapes = {name: shape for name, shape in shapes.items() if name in known}
    path = Path(args.output_file).with_suffix(".engine")
    with user_errors():
        engine = tensorrt.build_engine(args.output_file, shapes)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(engine)
    partial.replace(path)
    return f"TensorRT engine: {path}, for inputs {shapes}"


def verify(args: argparse.Namespace, found: Preprocessing | None, detector: nn.Module) -> str:
    """Raises UserError where PyTorch and the graph differ; else says how well they agree."""
    from dcnzoo.export.runtime import Session
    from dcnzoo.openmmlab.export.verify import Agreement, compare, predict, raw_difference

    path = args.test_img or args.input_img
    with user_errors():
        session = Session(args.output_file, args.backend, args.device)
        picture = load_picture(path, found, args)
    shapes = [args.shape]
    if args.dynamic_export:  # another size, and the other orientation
        shapes += [(args.shape[0] + 64, args.shape[1]), (args.shape[1], args.shape[0])]
    total, difference = Agreement(0, 0), 0.0
    for i, shape in enumerate(shapes):
        seen, images, size = load_image(detector, found, picture, shape)
        sizes = [size]
        if i and args.dynamic_export:
            images, sizes = torch.cat([images, images.flip(-1)]), [size, tuple(images.shape[2:])]
        if args.skip_postprocess:
            difference = max(difference, raw_difference(detector, images, session))
            continue
        if "img_shape" not in session.inputs:  # padding is part of the image, for both
            sizes = [tuple(images.shape[2:])] * len(images)
        expected, outputs = predict(detector, images, sizes), session(images.numpy(), np.array(sizes))
        total += compare(outputs, expected)
        if i == 0 and args.show:
            draw(args, detector.classes, seen, expected[0], outputs)
    if args.skip_postprocess:
        result = (
            f"raw outputs of PyTorch and {args.backend} differ by {difference:.1e} of their largest value"
        )
        if not difference <= 1e-3:
            raise UserError(f"--verify: expected at most 1e-3: {result}")
        return result
    if total.found == 0:
        raise UserError(
            f"--verify: nothing is found in {path or 'the drawn image'}, by PyTorch or {args.backend}: "
            "expected an image with objects: --test-img FILE"
        )
    result = f"{total.matched} of {total.found} detections agree between PyTorch and {args.backend}"
    if not total.holds:
        raise UserError(f"--verify: expected 99 % of the detections to agree: {result}")
    return result


def draw(
    args: argparse.Namespace, classes: tuple[str, ...], picture: np.ndarray, expected, outputs: dict
) -> None:
    from dcnzoo.report import Instances, plot_detections

    there = outputs["labels"][0] >= 0
    height, width = picture.shape[:2]

    def cropped(masks: np.ndarray | None) -> np.ndarray | None:
        return None if masks is None else masks[:, :height, :width]

    masks = outputs["masks"][0][there] >= 128 if "masks" in outputs else None
    dets = outputs["dets"][0][there]
    torch_masks = expected.masks.numpy() if "masks" in expected else None
    columns = {
        "PyTorch": Instances(
            expected.bboxes.numpy(), expected.labels.numpy(), cropped(torch_masks), expected.scores.numpy()
        ),
        args.backend: Instances(dets[:, :4], outputs["labels"][0][there], cropped(masks), dets[:, 4]),
    }
    count = int(max(column.labels.max(initial=0) for column in columns.values())) + 1
    classes = classes or [str(i) for i in range(count)]
    palette = [tuple(int(c) for c in np.random.default_rng(i).integers(64, 255, 3)) for i in range(count)]
    figure = plot_detections(
        [picture[..., ::-1]], {k: [v] for k, v in columns.items()}, classes, palette, 0.3
    )
    path = Path(args.output_file).with_suffix(".png")
    figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


@command
def main() -> None:
    args = parse_args()
    require_file(args.config, "config")
    require_file(args.checkpoint, "checkpoint")
    os.environ.setdefault("ORT_LOGGING_LEVEL", "3")
    with user_errors():
        cfg, detector = load_detector(args)
        found = preprocessing(cfg, detector, args)
        picture = load_picture(args.input_img, found, args)
        traced = args.shape
        args.shape = input_shape(found, picture, args)
        if traced is None and args.dynamic_export:
            factor = -(-LEAST_TRACED // min(args.shape))
            traced = tuple(size * factor for size in args.shape)
        _, images, _ = load_image(detector, found, picture, traced or args.shape)
        export(args, found, detector, images)
    size = Path(args.output_file).stat().st_size / 2**20
    shape = "height and width open" if args.dynamic_export else f"input {args.shape[0]} × {args.shape[1]}"
    print(f"written: {args.output_file} ({size:.1f} MiB), {shape}, opset {args.opset_version}")
    if args.backend == "tensorrt":
        print(build_engine(args, images))
    if args.verify:
        print(verify(args, found, detector))


if __name__ == "__main__":
    main()
