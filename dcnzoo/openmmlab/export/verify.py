"""Compare the results of an exported file with those of PyTorch, on the same pictures."""

import itertools
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from dcnzoo.detect.backends import BOX_MASKS
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.exported import ExportedDetector
from dcnzoo.detect.session import Session
from dcnzoo.export.options import Agreement
from dcnzoo.openmmlab.export.predict import RawHead
from dcnzoo.openmmlab.results import to_detections

TOLERANCE = 1e-3  # of scores, and of boxes relative to the largest coordinate


def verify(detector: BaseDetector, exported: ExportedDetector, pictures: Sequence[np.ndarray]) -> Agreement:
    """Compare ``detector(picture)`` with ``exported(picture)``, through all of preprocessing.

    Each picture is also turned by 90° and, unless the file has a fixed size, compared in a batch with its
    turned copy.

    Args:
        pictures: [H, W, 3], uint8, BGR.

    Raises:
        ValueError: fewer than 99 % of the detections agree.
    """
    batches = []
    for picture in pictures:
        turned = np.rot90(picture).copy()
        batches += [[picture], [turned]]
        if exported.model.shape[0] is None:
            batches.append([picture, turned])
    total = Agreement(0, 0)
    for batch in batches:
        with warnings.catch_warnings():  # PyTorch gets the file's inputs: also shrunk, and without img_shape
            warnings.filterwarnings("ignore", ".*(no input img_shape|shrunk to the file)", UserWarning)
            results = list(exported(batch, batch_size=len(batch), score_threshold=-1, bgr=True))
            # a mask of the whole input is as exact as a pixel of it
            masks_of_input = BOX_MASKS not in exported.model.output_names
            exact = max([1.0, *(max(p.shape) / max(exported.prepare(p)[1]) for p in batch if masks_of_input)])
            total += compare_all(results, predict(detector, exported, batch), exact)
    if total.number and not total.holds:
        raise ValueError(f"verify: expected 99 % of the detections to agree: {total}")
    return total


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
    less than ``exact`` pixels. If only one side has masks, none match.
    """
    if (result.crops is None) != (reference.crops is None):
        return Agreement(0, max(len(reference), len(result)))
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
