"""Export a detector to ONNX: ``python tools/deployment/pytorch2onnx.py CONFIG CHECKPOINT [options]``.

Also ``dcnzoo export``.

examples:
  dcnzoo export CONFIG CHECKPOINT --output-file model.onnx --shape 800 1216 --dynamic-export --verify
  dcnzoo export CONFIG CHECKPOINT --output-file model.onnx --backend openvino
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from dcnzoo.engine.cli import (
    UserError,
    add_allow_partial,
    add_cfg_options,
    add_config,
    command,
    read_config_file,
    require_file,
    user_errors,
)
from dcnzoo.errors import one_line

# after dcnzoo.engine, which silences a warning of mmengine's import
# isort: split
import cv2
import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

import dcnzoo.models  # noqa: F401  registers what a config names

ROOT = Path(__file__).resolve().parents[2]
OPSETS = range(18, 22)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--output-file", default="tmp.onnx", help="the ONNX file (default: tmp.onnx)")
    parser.add_argument(
        "--input-img",
        default=str(ROOT / "tests/data/color.jpg"),
        help="image that is traced with (default: tests/data/color.jpg)",
    )
    parser.add_argument("--test-img", help="image for --verify (default: the input image)")
    parser.add_argument(
        "--shape", type=int, nargs="+", default=[800, 1216], help="height and width of the input (800 1216)"
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
    if len(args.shape) == 1:
        args.shape *= 2
    if len(args.shape) != 2 or min(args.shape) < 1:
        parser.error(f"--shape: expected one or two positive numbers, got {args.shape}")
    if args.verify and args.skip_postprocess:
        parser.error("--verify: expected an export that it can run to boxes, got --skip-postprocess")
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
    from dcnzoo.zoo.detector import build

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


def preprocessing(cfg: Config, detector: nn.Module) -> dict[str, str]:
    """What the file is to hold, so that it is enough for :class:`dcnzoo.export.Detector`."""
    from dcnzoo.export.picture import Preprocessing

    try:
        pipeline = test_dataset(cfg).get("pipeline", [])
        return Preprocessing.of(pipeline, detector.data_preprocessor, detector.classes).to_metadata()
    except ValueError as error:
        print(f"dcnzoo.export.Detector cannot use the file: {one_line(error)}")
        return {}


def load_image(detector: nn.Module, path: str, shape: tuple[int, int]) -> tuple[np.ndarray, Tensor]:
    """The picture in the size that is asked for, [H, W, 3] BGR, and what the model sees, [1, 3, H, W]."""
    require_file(path, "image")
    picture = cv2.imread(path)
    if picture is None:
        raise UserError(f"image: expected a picture that OpenCV reads, got {path}")
    picture = cv2.resize(picture, (shape[1], shape[0]))
    data = {"inputs": [torch.from_numpy(picture.transpose(2, 0, 1).copy())], "data_samples": None}
    return picture, detector.data_preprocessor(data, False)["inputs"]


def export(args: argparse.Namespace, cfg: Config, detector: nn.Module, images: Tensor) -> None:
    """Writes the output file, only when all that is asked for is done."""
    import onnx

    from dcnzoo.export.detectors import export_detector
    from dcnzoo.export.exporters import save

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
            metadata=preprocessing(cfg, detector),
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


def verify(args: argparse.Namespace, detector: nn.Module) -> str:
    """Raises UserError where PyTorch and the graph differ; else says how well they agree."""
    from dcnzoo.export.runtime import Session
    from dcnzoo.export.verify import Agreement, compare, predict

    with user_errors():
        session = Session(args.output_file, args.backend, args.device)
    path = args.test_img or args.input_img
    shapes = [tuple(args.shape)]
    if args.dynamic_export:  # another size, and the other orientation
        shapes += [(args.shape[0] + 64, args.shape[1]), (args.shape[1], args.shape[0])]
    total = Agreement(0, 0)
    for i, shape in enumerate(shapes):
        picture, images = load_image(detector, path, shape)
        if i and args.dynamic_export:
            images = torch.cat([images, images.flip(-1)])
        expected, outputs = predict(detector, images), session(images.numpy())
        total += compare(outputs, expected)
        if i == 0 and args.show:
            draw(args, detector.classes, picture, expected[0], outputs)
    if total.found == 0:
        raise UserError(
            f"--verify: nothing is found in {path}, by PyTorch or {args.backend}: use a --test-img"
        )
    result = f"{total.matched} of {total.found} detections agree between PyTorch and {args.backend}"
    if not total.holds:
        raise UserError(f"--verify: expected 99 % of the detections to agree: {result}")
    return result


def draw(
    args: argparse.Namespace, classes: tuple[str, ...], picture: np.ndarray, expected, outputs: dict
) -> None:
    from dcnzoo.visualization import Instances, plot_detections

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
        _, images = load_image(detector, args.input_img, tuple(args.shape))
        export(args, cfg, detector, images)
    size = Path(args.output_file).stat().st_size / 2**20
    print(f"written: {args.output_file} ({size:.1f} MiB), opset {args.opset_version}")
    if args.backend == "tensorrt":
        print(build_engine(args, images))
    if args.verify:
        print(verify(args, detector))


if __name__ == "__main__":
    main()
