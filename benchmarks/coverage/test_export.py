"""The exported file of a config of each family of MMDetection detects what PyTorch does.

The configs are those of ``test_mmdet.py``, with complete architectures and random weights whose layers have
outputs of unit variance, so that they detect objects. A family is ok if ``dcnzoo export`` supports it and the
runtimes find the same objects as ``model.predict``: at least 99 % of them, on images on which rounding does
not change PyTorch's own detections. A dynamic file is compared for two sizes and batch sizes. Takes 3 hours.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmcv.cnn import ConvAWS2d
from mmdet.models.detectors import SOLO, BaseDetector
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from benchmarks.coverage.families import FAMILIES
from benchmarks.coverage.trial import apart, expect, image_size, prepare, read
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.session import Session
from dcnzoo.export.result import ExportResult
from dcnzoo.openmmlab.detector import TorchDetector
from dcnzoo.openmmlab.export.pictures import predicting_part
from dcnzoo.openmmlab.export.predict import Predictor
from dcnzoo.openmmlab.export.verify import compare, compare_all
from tests.helpers.detectors import decoded, predict_batch, size_of_picture

SECONDS, MEMORY = 1800, 16 << 30  # limits of a trial: seconds, bytes
IMAGES, ROUNDING = 20, 1e-6  # images to try; a change as large as the effect of another order of sums
BACKENDS = ("onnxruntime", "openvino")
TRACKING = "out of scope: it tracks objects from image to image. Export its detector"
TEXT = "out of scope: it detects what a text describes, and has no fixed classes"
OUT_OF_SCOPE = {
    **dict.fromkeys(("bytetrack", "deepsort", "mask2former_vis", "masktrack_rcnn", "ocsort"), TRACKING),
    **dict.fromkeys(("qdtrack", "sort", "strongsort"), TRACKING),
    **dict.fromkeys(("glip", "grounding_dino", "mm_grounding_dino"), TEXT),
    "misc": "out of scope: it wraps a model of Detectron2",
    "reid": "out of scope: it compares persons and detects nothing",
}


@torch.no_grad()
def calibrate(model: nn.Module, images: torch.Tensor) -> None:
    """Scale and shift the outputs of each layer: initial weights detect nothing.

    Outputs get unit variance; those of a layer with a bias get this bias as the mean of each channel, so that
    no class is preferred. Regressions of boxes get a standard deviation of 0.1, like those of a trained
    detector: with large ones, a detector of several stages amplifies rounding errors.
    """
    seen = set()

    def scale(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if module in seen or output.numel() < 2:
            return None
        seen.add(module)
        axis = 1 if output.dim() > 2 and not isinstance(module, nn.Linear) else output.dim() - 1
        shape = [-1 if i == axis else 1 for i in range(output.dim())]
        bias = torch.zeros(()) if module.bias is None else module.bias.clone().reshape(shape)
        output = output - bias
        deviation = output.std()
        if deviation < 1e-4:  # the layer, or one before it, is initialised to zero
            return None
        factor = (0.1 if names[module].endswith(("fc_reg", "rpn_reg")) else 1) / deviation
        output = output * factor
        standardised = isinstance(module, ConvAWS2d)  # the scale of its weight has no effect
        for weight in (module.weight_gamma, module.weight_beta) if standardised else (module.weight,):
            weight.mul_(factor)
        if module.bias is not None and output.numel() > output.shape[axis]:
            mean = output.mean([i for i in range(output.dim()) if i != axis], keepdim=True)
            if (output - mean).std() > 0.1:  # else later layers would amplify rounding errors
                module.bias.sub_(mean.flatten())
                output = output - mean
        return output + bias

    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    names = {module: name for name, module in model.named_modules() if isinstance(module, kinds)}
    handles = [module.register_forward_hook(scale) for module in names]
    predict_batch(model, images)
    for handle in handles:
        handle.remove()


def stable_images(
    detector: nn.Module, shape: tuple[int, int, int], of_picture: Callable
) -> tuple[torch.Tensor, list[Detections]]:
    """Return images [N, 3, height, width] and the detections in them that rounding does not change.

    Where scores are equal, or boxes overlap by exactly NMS's threshold, rounding decides what PyTorch itself
    detects. A comparison on such images shows no fault of an export.

    Args:
        shape: number, height and width of the images.
        of_picture: see :func:`tests.helpers.detectors.predict_batch`.

    Raises:
        AssertionError: there are no such images, or no detections.
    """
    count, height, width = shape
    chosen = []
    for seed in range(IMAGES * count):
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
        (expected,) = predict_batch(detector, image, None, of_picture)
        (rounded,) = predict_batch(
            detector, image * (1 + ROUNDING * torch.randn_like(image)), None, of_picture
        )
        agreement = compare(rounded, expected)
        if agreement.matched == agreement.number > 0:
            chosen.append((image, expected))
        if len(chosen) == count:
            images, expected = zip(*chosen, strict=True)
            return torch.cat(images), list(expected)
    raise AssertionError(
        f"rounding changes PyTorch's own detections: {agreement.matched} of {agreement.number}"
    )


def export(model: nn.Module, path: Path, size: int) -> ExportResult:
    """Export with dynamic sizes if the detector supports them."""
    detector = TorchDetector(model, channels_last=False)
    fixed = (size, size) if Predictor(predicting_part(model)).one_size else None
    return detector.export(path, shape=fixed, verify=False)


def try_out(cfg: Config, backends: tuple[str, ...] = BACKENDS) -> str:
    """Export a detector; compare the file with PyTorch in each backend; return which sizes it supports.

    Raises:
        Exception: the export is not supported, or the results differ.
    """
    size = image_size(cfg)
    settings = cfg.model.get("test_cfg") or {}
    settings = settings.get("rcnn", settings)
    if settings.get("score_thr", 0) > 0.005:  # random classifiers are less certain than trained ones
        settings.score_thr = 0.005
    with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope("mmdet"):
        model = prepare(cfg)
        model.cfg = cfg
        model.eval()
        network = predicting_part(model)
        network.eval()  # LD's eval() returns None
        expect(isinstance(network, BaseDetector), f"expected a detector, got {type(network).__name__}")
        names = Predictor(network).output_names  # raises, before the expensive steps, if it is not supported
        of_picture = tuple if "masks" in names else size_of_picture  # these are masks of the input
        if type(network) is SOLO:  # the initial probability of its masks is 0.01
            for layer in network.mask_head.conv_mask_list:
                nn.init.zeros_(layer.bias)
        torch.manual_seed(0)
        calibrate(network, torch.randn(4, 3, size, size))  # with one image, all scores in others may be 1
        path = Path(folder) / "model.onnx"
        try:
            result = export(model, path, size)
        except ValueError as error:  # the message names a file in a temporary folder
            raise ValueError(str(error).replace(str(path), path.name)) from error
        shapes = [(1, size, size)] if result.shape else [(1, size, size), (2, size + 64, size)]
        samples = [stable_images(network, shape, of_picture) for shape in shapes]
        for backend in backends:
            session = Session(path, backend)
            for images, expected in samples:
                results = decoded(
                    session(images.numpy()), [tuple(images.shape[2:])] * len(images), of_picture
                )
                agreement = compare_all(results, expected)
                agreed = f"{agreement.matched} of {agreement.number} detections agree"
                expect(agreement.holds, f"{agreed} in {backend}, {list(images.shape)}")
    return "ok, fixed size" if result.shape else "ok"


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, record):
    if family in OUT_OF_SCOPE:
        pytest.skip(OUT_OF_SCOPE[family])
    record(family, FAMILIES[family], apart(lambda: try_out(read(FAMILIES[family])), SECONDS, MEMORY))
