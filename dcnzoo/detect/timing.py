"""Time detectors of one model in turn: time, and agreement of the detections."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from dcnzoo.detect.detections import SAME, Detections, iou
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.pictures import read, reverse_channels
from dcnzoo.utils.progress import track


@dataclass
class Timing:
    """The measurements of a detector.

    Attributes:
        seconds: of each call with one image, from the image in memory to the detections.
        results: the detections in each image, once.
    """

    seconds: list[float] = field(default_factory=list)
    results: list[Detections] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(
    detectors: Mapping[str, BaseDetector], images: Sequence[np.ndarray], count: int, warmup: int = 1
) -> dict[str, Timing]:
    """Run detectors on ``count`` images each, after a warm-up.

    The detectors take turns, so that other work on the machine affects all of them. If there are fewer than
    ``count`` images (RGB), they are repeated.
    """
    timings = {name: Timing() for name in detectors}
    for name, detector in track(detectors.items(), "first images"):
        timings[name].results = [cast(Detections, detector(image)) for image in images[:count]]
    for index in track(range(warmup + count), "timing"):
        for name, detector in detectors.items():
            start = time.perf_counter()
            detector(images[index % len(images)])
            if index >= warmup:
                timings[name].seconds.append(time.perf_counter() - start)
    return timings


def pictures(paths: Sequence[str], size: tuple[int, int]) -> list[np.ndarray]:
    """Read images; without paths, return one image of noise with this height and width."""
    if paths:
        return [reverse_channels(read(path)) for path in paths]
    return [np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)]


def agreement(one: Sequence[Detections], other: Sequence[Detections]) -> float:
    """Return the share of detections that have a counterpart: the same class and an IoU of at least 80 %."""
    matched = total = 0
    for first, second in zip(one, other, strict=True):
        same = (iou(first.boxes, second.boxes) >= SAME) & (first.labels[:, None] == second.labels)
        matched += same.any(1).sum() + same.any(0).sum()
        total += len(first) + len(second)
    return matched / total if total else 1.0
