"""Regions of text, grown from their kernels (PSENet, PAN)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

STEPS = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])


def _grow(
    labels: np.ndarray, edge: np.ndarray, joins: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Extend labels to unlabelled pixels, step by step to the 4 neighbours. The first label to arrive counts.

    Args:
        labels: [H, W], written; a pixel is unlabelled if it is not positive.
        edge: [n, 2], the pixels to start from, in the order in which they label their neighbours.
        joins: ``joins(pixels, labels)`` returns which of the pixels may get these labels.
    """
    while len(edge):
        reached = (edge[:, None] + STEPS).reshape(-1, 2)
        offered = np.repeat(labels[tuple(edge.T)], len(STEPS))
        inside = ((reached >= 0) & (reached < labels.shape)).all(1)
        reached, offered = reached[inside], offered[inside]
        free = labels[tuple(reached.T)] <= 0
        reached, offered = reached[free], offered[free]
        joined = joins(reached, offered)
        reached, offered = reached[joined], offered[joined]
        first = np.sort(np.unique(np.ravel_multi_index(reached.T, labels.shape), return_index=True)[1])
        edge = reached[first]
        labels[tuple(edge.T)] = offered[first]


def contour_expand(
    kernel_mask: Tensor,  # [kernels, H, W], the widest first
    internal_kernel_label: Tensor,  # [H, W]
    min_kernel_area: int,
    kernel_num: int,
) -> list[list[int]]:
    """The label of each pixel, [H, W]. As in mmcv, labels grow into the widest mask at once."""
    labels = internal_kernel_label.numpy().copy()
    labels[np.bincount(labels.ravel())[labels] < min_kernel_area] = 0
    if kernel_num > 1:
        widest = kernel_mask[0].numpy() != 0
        _grow(labels, np.argwhere(labels), lambda pixels, _: widest[tuple(pixels.T)])
    return labels.tolist()


def pixel_group(
    score: Tensor,  # [H, W]
    mask: Tensor,  # [H, W]
    embedding: Tensor,  # [H, W, C]
    kernel_label: Tensor,  # [H, W]
    kernel_contour: Tensor,  # [H, W]
    kernel_region_num: int,
    distance_threshold: float,
) -> list[list[float]]:
    """For each label from 0: mean score, number of pixels, then x and y of each pixel. Label 0 has none."""
    labels, text, vectors = kernel_label.numpy().copy(), mask.numpy(), embedding.numpy()
    of_kernel = kernel_label.flatten()
    sums = torch.zeros(kernel_region_num, embedding.shape[2])
    sums.index_add_(0, of_kernel, embedding.flatten(0, 1))
    means = (sums / of_kernel.bincount(minlength=kernel_region_num)[:, None]).numpy()

    def joins(pixels: np.ndarray, offered: np.ndarray) -> np.ndarray:
        near = np.square(means[offered] - vectors[tuple(pixels.T)]).sum(1) < distance_threshold**2
        return near & text[tuple(pixels.T)]

    _grow(labels, np.argwhere((labels > 0) & (kernel_contour.numpy() != 0)), joins)

    regions = [[0.0, 0.0]]
    for label in range(1, kernel_region_num):
        pixels = np.argwhere(labels == label)
        mean = float(score.numpy()[tuple(pixels.T)].mean()) if len(pixels) else 0.0
        regions.append([mean, float(len(pixels)), *pixels[:, ::-1].ravel().astype(float).tolist()])
    return regions
