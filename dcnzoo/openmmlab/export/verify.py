"""Compare the results of an exported file with those of PyTorch, on the same pictures.

:func:`verify` chooses views and batches, :func:`predict` runs PyTorch on the file's inputs, :func:`compare`
matches the detections of a picture. What it returns and prints is a :class:`dcnzoo.export.result.Agreement`.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.exported import ExportedDetector
from dcnzoo.detect.session import Session
from dcnzoo.export.result import Agreement, Difference
from dcnzoo.openmmlab.calls import call_settings
from dcnzoo.openmmlab.export.pictures import predicting_part
from dcnzoo.openmmlab.export.predict import RawHead
from dcnzoo.openmmlab.results import to_detections

TOLERANCE = 1e-3  # of scores, and of boxes relative to the largest coordinate
MASK_IOU = 0.99


def verify(detector: BaseDetector, exported: ExportedDetector, pictures: Sequence[np.ndarray]) -> Agreement:
    """Compare ``detector(picture)`` with ``exported(picture)``, through all of preprocessing.

    Each picture is also turned by 90° and, unless the file has a fixed size, compared in a batch with its
    turned copy. The output ``masks`` is as exact as a pixel of the input: these masks are compared in
    pictures that have been resized to the input, and pictures of their own size without masks.

    Args:
        pictures: [H, W, 3], uint8, BGR.

    Raises:
        ValueError: fewer than 99 % of the detections agree.
    """
    total, masks_of_input = Agreement(0, 0), "masks" in exported.model.output_names
    with warnings.catch_warnings():  # PyTorch gets the file's inputs: also shrunk, and without img_shape
        warnings.filterwarnings("ignore", ".*(no input img_shape|shrunk to the file)", UserWarning)
        for number, picture in enumerate(pictures, 1):
            turned = np.rot90(picture).copy()
            views = [(f"picture {number}", picture), (f"picture {number}, turned", turned)]
            batches = [[view] for view in views]
            if exported.model.shape[0] is None:
                batches.append(views)
            for batch in batches:
                total += _verify_batch(detector, exported, batch, masks=not masks_of_input)
                if masks_of_input:
                    resized = [(name, _resized(exported, view)) for name, view in batch]
                    total += _verify_batch(detector, exported, resized)
    if total.number and not total.holds:
        raise ValueError(f"verify: expected 99 % of the detections to agree: {total}")
    return total


def _resized(exported: ExportedDetector, picture: np.ndarray) -> np.ndarray:
    height, width = exported.prepare(picture)[1]
    return cv2.resize(picture, (width, height))


def _verify_batch(
    detector: BaseDetector,
    exported: ExportedDetector,
    batch: Sequence[tuple[str, np.ndarray]],
    masks: bool = True,
) -> Agreement:
    """Compare the detections in named pictures, with or without their masks."""
    names, pictures = zip(*batch, strict=True)
    results = list(exported(list(pictures), batch_size=len(pictures), score_threshold=-1, bgr=True))
    references = predict(detector, exported, pictures)
    if not any(each.boxes.any() for each in references):  # without boxes, the detector returns the masks'
        results = [dataclasses.replace(each, boxes=np.zeros_like(each.boxes)) for each in results]
    if not masks:
        results, references = (
            [dataclasses.replace(each, crops=None) for each in side] for side in (results, references)
        )
    return compare_all(results, references, names)


@torch.no_grad()
def predict(
    detector: BaseDetector, exported: ExportedDetector, pictures: Sequence[np.ndarray]
) -> list[Detections]:
    """Detect objects with PyTorch, by MMDetection's test pipeline.

    For a file of a fixed size, images are padded to this size; of pictures that must be shrunk for it, the
    input is that of the file.
    """
    model, shape = detector.model, exported.model.shape[2:]
    part: Any = predicting_part(model)
    batch = [detector.prepare(picture) for picture in pictures]
    data = model.data_preprocessor(pseudo_collate(batch), False)
    images, samples = data["inputs"], data["data_samples"]
    if shape[0] is not None and all(map(exported.fits, pictures)):
        rest = [length - n for length, n in zip(shape, images.shape[2:], strict=True)]
        images = F.pad(images, (0, rest[1], 0, rest[0]), value=part.data_preprocessor.pad_value)
    elif shape[0] is not None:
        inputs, sizes, _ = zip(*map(exported.prepare, pictures), strict=True)
        images = torch.from_numpy(exported.model.stack(inputs)).to(images)
        for sample, size in zip(samples, sizes, strict=True):
            factors = (size[1] / sample.ori_shape[1], size[0] / sample.ori_shape[0])
            sample.set_metainfo(dict(img_shape=exported.border(size), scale_factor=factors))
    padded = tuple(images.shape[2:])
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=padded, pad_shape=padded))
        if len(exported.model.inputs) == 1:  # the whole input is the picture
            sample.set_metainfo(dict(img_shape=padded))
    with call_settings(model):
        samples = model(images, samples, mode="predict")
    return [to_detections(sample.pred_instances, -1) for sample in samples]


def compare_all(
    results: Sequence[Detections],
    references: Sequence[Detections],
    names: Iterable[str] = itertools.repeat(""),
) -> Agreement:
    return sum(map(compare, results, references, names), Agreement(0, 0))


def compare(result: Detections, reference: Detections, name: str = "") -> Agreement:
    """Match the detections of a picture one to one, in any order.

    Two match if their labels are equal, boxes agree within 1e-3 of the largest coordinate (or 1e-3 pixels, if
    larger), scores within 1e-3, and masks overlap with an IoU of at least 0.99. If only one side has masks,
    none match.

    Args:
        name: of the picture, for the largest difference.
    """
    number = max(len(reference), len(result))
    if (result.crops is None) != (reference.crops is None):
        side = "PyTorch" if result.crops is None else "the file"
        return Agreement(0, number, Difference(np.inf, f"only {side} has masks"))
    unmatched, missing, least = np.ones(len(result), bool), [], 1.0
    for i in range(len(reference)):
        coordinates, scores = _distances(result, reference, i)
        near = unmatched & (coordinates <= 1) & (scores <= 1) & (result.labels == reference.labels[i])
        best, overlap = -1, -1.0
        for j in map(int, np.flatnonzero(near)):
            if (iou := _mask_iou(result, j, reference, i)) > overlap:
                best, overlap = j, iou
            if overlap >= MASK_IOU:
                break
        if best >= 0:
            least = min(least, overlap)
        if overlap >= MASK_IOU:
            unmatched[best] = False
        else:
            missing.append(i)
    differences = [_difference(result, unmatched, reference, i, name) for i in missing]
    if not missing and unmatched.any():
        j = int(np.flatnonzero(unmatched)[0])
        text = f"score {result.scores[j]:.3g} in the file, none in PyTorch, {name}, box {j + 1}"
        differences.append(Difference(result.scores[j] / TOLERANCE, text))
    largest = max(differences, default=None)
    matched = int((~unmatched).sum())
    return Agreement(matched, number, largest, None if reference.crops is None else least)


def _distances(result: Detections, reference: Detections, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how far boxes and scores are from those of detection ``i``, in tolerances, [K] each."""
    tolerance = TOLERANCE * max(1.0, np.abs(reference.boxes[i]).max())
    coordinates = np.abs(result.boxes - reference.boxes[i]).max(1, initial=0) / tolerance
    return coordinates, np.abs(result.scores - reference.scores[i]) / TOLERANCE


def _mask_iou(result: Detections, j: int, reference: Detections, i: int) -> float:
    """Return the IoU of the masks of two detections; 1 without masks, or if both are empty."""
    if result.crops is None or reference.crops is None:
        return 1.0
    mask, expected = result.crops[j], reference.crops[i]
    union = int((mask | expected).sum())
    return int((mask & expected).sum()) / union if union else 1.0


def _difference(
    result: Detections, unmatched: np.ndarray, reference: Detections, i: int, name: str
) -> Difference:
    """Return in what detection ``i`` of PyTorch differs most from the nearest one of the file."""
    coordinates, scores = _distances(result, reference, i)
    distance = np.where(unmatched & (result.labels == reference.labels[i]), coordinates + scores, np.inf)
    score, place = reference.scores[i], f"{name}, box {i + 1}"
    if not np.isfinite(distance).any():
        return Difference(score / TOLERANCE, f"score {score:.3g} in PyTorch, none in the file, {place}")
    j = int(distance.argmin())
    pixels, iou = np.abs(result.boxes[j] - reference.boxes[i]).max(), _mask_iou(result, j, reference, i)
    kinds = [
        Difference(coordinates[j], f"coordinates {pixels:.2g} pixels apart, {place}"),
        Difference(scores[j], f"score {score:.3g} and, in the file, {result.scores[j]:.3g}, {place}"),
        Difference((1 - iou) / (1 - MASK_IOU), f"IoU of the masks {iou:.3f}, {place}"),
    ]
    return max(kinds)


@torch.no_grad()
def verify_raw_outputs(network: nn.Module, session: Session, shapes: Iterable[tuple[int, ...]]) -> None:
    """Compare the outputs of a head and of its file for noise of each shape, [N, 3, H, W].

    Raises:
        ValueError: they differ by more than 1e-3 of their maximum.
    """
    head = RawHead(network)
    for shape in shapes:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with call_settings(network):
            leaves = torch.utils._pytree.tree_leaves(head(images))
        expected = [value.numpy() for value in leaves if isinstance(value, Tensor)]
        _compare_arrays(list(session(images.numpy()).values()), expected)


def _compare_arrays(outputs: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for output, value in itertools.zip_longest(outputs, expected):
        if output is None or value is None or output.shape != value.shape:
            raise ValueError("verify: expected the outputs of the head, got others from the file")
        difference = float(np.abs(output - value).max() / max(np.abs(value).max(), 1e-12))
        if not difference <= TOLERANCE:
            raise ValueError(f"verify: raw_outputs: expected a difference within 1e-3, got {difference:.1e}")
