"""Compare the results of an exported file with those of PyTorch, on the same pictures."""

import contextlib
import dataclasses
import io
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dcnzoo.detect.backends import BOX_MASKS
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.exported import ExportedDetector
from dcnzoo.detect.session import Session
from dcnzoo.detect.timing import agreement
from dcnzoo.export.options import Agreement, ExportResult
from dcnzoo.openmmlab.export.predict import RawHead
from dcnzoo.openmmlab.results import to_detections
from dcnzoo.utils.formats import image_folder

TOLERANCE = 1e-3  # of scores, and of boxes relative to the largest coordinate
NEAR = 1e-5  # scores of queries that are closer, relative to the largest, may change their order


class LowerIndexFirst(TorchFunctionMode):
    """Sort equal values by index, as ONNX does; without ``stable=True``, torch may return any order.

    A confident RPN scores many proposals exactly 1.0. Their order decides which of them NMS receives.

    Args:
        exchange: exchange neighbours whose values are nearly equal. The queries of a transformer go by rank:
            rounding then changes which query predicts an object.

    Attributes:
        has_near_ties: whether there were any.
    """

    def __init__(self, exchange: bool = False) -> None:
        super().__init__()
        self.exchange, self.has_near_ties = exchange, False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.sort, Tensor.sort):
            return _sort(*args, **{**kwargs, "stable": True})
        if function in (torch.topk, Tensor.topk):
            return self._topk(*args, **kwargs)
        return function(*args, **kwargs)

    def _topk(self, values: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True):
        values, index = _sort(values, dim=dim, descending=largest)
        if values.dim() == 2 and dim in (1, -1):
            self._exchange(values, index, k)
        return torch.return_types.topk((values.narrow(dim, 0, k), index.narrow(dim, 0, k)))

    def _exchange(self, values: Tensor, index: Tensor, k: int) -> None:
        limit = NEAR * values[:, :1].abs()
        near = (values[:, :-1] - values[:, 1:]).abs()[:, :k] < limit
        self.has_near_ties |= bool(near.any())
        for row, place in near.nonzero().tolist() if self.exchange else ():
            for part in (values, index):
                part[row, [place, place + 1]] = part[row, [place + 1, place]]


def _sort(values: Tensor, dim: int = -1, descending: bool = False, stable: bool = True):
    return torch.sort(values, dim=dim, descending=descending, stable=True)


def verify(detector: BaseDetector, exported: ExportedDetector, pictures: Sequence[np.ndarray]) -> Agreement:
    """Compare ``detector(picture)`` with ``exported(picture)``, through all of preprocessing.

    Each picture is also turned by 90°, cropped so that padding differs, cropped to fill the input, and
    compared in a batch with its turned copy; an empty picture is added.

    Args:
        pictures: [H, W, 3], uint8, BGR.

    Raises:
        ValueError: fewer than 99 % of the detections agree, or there are none.
    """
    total = Agreement(0, 0)
    for picture in (*pictures, empty_picture(pictures[0].shape[:2])):
        batches = [[variant] for variant in variants(picture)]
        if exported.model.shape[0] is None:
            batches.append([picture, np.rot90(picture).copy()])
        for batch in batches:
            with warnings.catch_warnings():  # without an input img_shape, PyTorch gets none either
                warnings.filterwarnings("ignore", ".*no input img_shape", UserWarning)
                results = list(exported(batch, batch_size=len(batch), score_threshold=-1, bgr=True))
            total += compare_with_ties(detector, exported, batch, results)
    if total.number == 0:
        raise ValueError("verify: expected a picture with objects, got none from PyTorch or the file")
    if not total.holds:
        raise ValueError(f"verify: expected 99 % of the detections to agree: {total}")
    return total


def empty_picture(size: tuple[int, int]) -> np.ndarray:
    """Return a picture without objects. It is not of one colour: then, many scores would be equal."""
    rows, columns = (np.linspace(0, 1, length) ** 1.5 for length in size)
    ramp = rows[:, None, None] * [60, 50, 40] + columns[:, None] * [30, 50, 60]
    return (80 + ramp).astype(np.uint8)


def variants(picture: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a picture, a turned one, one of another aspect ratio, and one whose input needs no padding."""
    yield picture
    yield np.rot90(picture).copy()
    height, width = picture.shape[:2]
    yield picture[: max(1, height - height // 7), : max(1, width - width // 3)].copy()
    side = min(height, width)
    yield picture[: side - side % 32 or side, : side - side % 32 or side].copy()


def compare_with_ties(
    detector: BaseDetector,
    exported: ExportedDetector,
    pictures: Sequence[np.ndarray],
    results: Sequence[Detections],
) -> Agreement:
    """Compare results with those of PyTorch; if they differ, also with those for exchanged near-ties."""
    exact = 1.0
    if BOX_MASKS not in exported.model.output_names:  # a mask of the file is as exact as a pixel of the input
        exact = max(exact, *(max(p.shape) / max(exported.prepare(p)[1]) for p in pictures))
    with LowerIndexFirst() as mode:
        total = compare_all(results, predict(detector, exported, pictures), exact)
    if total.holds or not mode.has_near_ties:
        return total
    with LowerIndexFirst(exchange=True):
        other = compare_all(results, predict(detector, exported, pictures), exact)
    return dataclasses.replace(other, exchanged=True) if other.matched > total.matched else total


@torch.no_grad()
def predict(
    detector: BaseDetector, exported: ExportedDetector, pictures: Sequence[np.ndarray]
) -> list[Detections]:
    """Detect objects with PyTorch, by MMDetection's test pipeline.

    For a file of a fixed size, images are padded to this size; of pictures that must be shrunk for it, the
    input is that of the file.
    """
    model, shape = detector.model, exported.model.shape[2:]
    batch = [detector.prepare(picture) for picture in pictures]
    data = model.data_preprocessor(pseudo_collate(batch), False)
    images, samples = data["inputs"], data["data_samples"]
    if shape[0] is not None and all(map(exported.fits, pictures)):
        rest = [length - n for length, n in zip(shape, images.shape[2:], strict=True)]
        images = F.pad(images, (0, rest[1], 0, rest[0]), value=model.data_preprocessor.pad_value)
    elif shape[0] is not None:
        inputs, sizes, _ = zip(*map(exported.prepare, pictures), strict=True)
        images = torch.from_numpy(exported.stack(inputs)).to(images)
        for sample, size in zip(samples, sizes, strict=True):
            factors = (size[1] / sample.ori_shape[1], size[0] / sample.ori_shape[0])
            sample.set_metainfo(dict(img_shape=exported.border(size), scale_factor=factors))
    padded = tuple(images.shape[2:])
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=padded, pad_shape=padded))
        if len(exported.model.inputs) == 1:  # the whole input is the picture
            sample.set_metainfo(dict(img_shape=padded))
    return [to_detections(sample.pred_instances, -1) for sample in model(images, samples, mode="predict")]


def compare_all(
    results: Sequence[Detections], references: Sequence[Detections], exact: float = 1.0
) -> Agreement:
    return sum(map(partial(compare, exact=exact), results, references), Agreement(0, 0))


def compare(result: Detections, reference: Detections, exact: float = 1.0) -> Agreement:
    """Match the detections of a picture one to one, in any order.

    Two match if their labels are equal, boxes agree within 1e-3 of the largest coordinate (or 1e-3 pixels, if
    larger), scores within 1e-3, and masks overlap with an IoU of at least 0.99, or differ at their borders by
    less than ``exact`` pixels.
    """
    unmatched, masks = np.ones(len(result), bool), result.crops
    expected: Any = reference.crops
    for i in range(len(reference)):
        box, tolerance = reference.boxes[i], TOLERANCE * max(1.0, np.abs(reference.boxes[i]).max())
        near = unmatched & (np.abs(result.boxes - box).max(1, initial=0) <= tolerance)
        near &= np.abs(result.scores - reference.scores[i]) <= TOLERANCE
        near &= result.labels == reference.labels[i]
        for j in np.flatnonzero(near):
            if masks is None or masks_agree(masks[int(j)], expected[i], exact):
                unmatched[j] = False
                break
    return Agreement(int((~unmatched).sum()), max(len(reference), len(result)))


def masks_agree(mask: np.ndarray, reference: np.ndarray, exact: float) -> bool:  # [H, W], bool
    """Whether an IoU is at least 0.99, or masks differ at their borders: see :func:`compare`."""
    borders = sum(
        (each[1:] ^ each[:-1]).sum() + (each[:, 1:] ^ each[:, :-1]).sum() for each in (mask, reference)
    )
    return (mask ^ reference).sum() <= max(0.01 * (mask | reference).sum(), 0.5 * exact * borders)


def measure_int8(
    detector: BaseDetector, result: ExportResult, data: str | os.PathLike[str], files: Sequence[Path]
) -> dict[str, dict[str, float]]:
    """Compare a quantised file with PyTorch on the images of ``Int8``: see :class:`ExportResult`."""
    from dcnzoo.detect import metrics

    data, truth, pictures = Path(data).expanduser(), None, list(files)
    if data.is_file():
        with contextlib.suppress(ValueError):  # its categories are others
            truth = metrics.read_coco(data, detector.classes)
    if truth is not None:  # only the images among the files, in the order of their ids
        names = {number: image["file_name"] for number, image in truth.imgs.items()}
        root = image_folder(data.resolve(), list(names.values())) or Path()
        chosen = {number: root / names[number] for number in sorted(names) if root / names[number] in files}
        pictures, content = list(chosen.values()), truth.dataset
        content["images"] = [truth.imgs[number] for number in chosen]
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] in chosen]
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            truth.createIndex()
    runtimes = [name for name in ("onnxruntime", "openvino") if find_spec(name)]
    if result.files[0].suffix == ".xml":
        runtimes = ["openvino"]
    detectors = {"PyTorch": detector, **{name: result.load(backend=name, device="cpu") for name in runtimes}}
    values: dict[str, dict[str, float]] = {}
    confident: dict[str, list[Detections]] = {}
    for name, each in detectors.items():
        results = [
            dataclasses.replace(one, masks=one.crops, image=None)
            for one in each(pictures, score_threshold=0.0)
        ]
        confident[name] = [one[one.scores >= detector.score_threshold] for one in results]
        values[name] = {} if each is detector else {"agree": agreement(confident["PyTorch"], confident[name])}
        if truth is not None:
            ap = metrics.evaluate(truth, results)
            values[name] |= {metric: ap[metric] for metric in ("box AP", "mask AP") if metric in ap}
    return {name: each for name, each in values.items() if each}


@torch.no_grad()
def verify_raw_outputs(network: nn.Module, session: Session, shape: tuple[int, int]) -> None:
    """Raise ValueError if the outputs of a head and of its file differ by more than 1e-3 of their maximum."""
    images = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    leaves = torch.utils._pytree.tree_leaves(RawHead(network)(images))
    expected = [value.numpy() for value in leaves if isinstance(value, Tensor)]
    outputs = list(session(images.numpy()).values())
    for output, value in itertools.zip_longest(outputs, expected):
        if output is None or value is None or output.shape != value.shape:
            raise ValueError("verify: expected the outputs of the head, got others from the file")
        difference = float(np.abs(output - value).max() / max(np.abs(value).max(), 1e-12))
        if not difference <= TOLERANCE:
            raise ValueError(f"verify: raw_outputs: expected a difference within 1e-3, got {difference:.1e}")
