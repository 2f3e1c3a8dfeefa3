"""A generated instance segmentation data set in which the sampling positions matter.

The three classes differ only in their overall outline: no arms (``oval``), three arms (``trefoil``), four
arms (``cross``). Every instance is bent by a smooth random field, stretched by up to ``stretch`` along a
random axis, rotated, and drawn at a size that varies by a factor of four. The background is clutter:
coloured texture, pixel noise and thin bent strokes. Colour, texture and the curvature of a piece of edge do
not reveal the class; the decisive pixels are elsewhere in every instance.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dcnzoo.data.builder import Builder
from dcnzoo.data.dataset import Dataset, Object, ReadOptions
from dcnzoo.data.geometry import polygon_area
from dcnzoo.utils.files import expanded, read_beside, replacing

CLASSES = ("oval", "trefoil", "cross")
PALETTE = [(230, 159, 0), (86, 180, 233), (0, 158, 115)]  # Okabe-Ito: distinguishable with colour blindness
SPLITS = ("train", "val")
SPEC_FILE = "shapes.json"
# Part of the recorded parameters: increase it when the same parameters generate other images.
VERSION = 1

_ARMS = ((0.0, 2), (0.42, 3), (0.42, 4))  # outline r(t) = 1 + depth · cos(count · t), per class
_VERTICES = 64
_MIN_AREA = 60.0  # pixels²; the arms of a smaller instance are not visible
_MIN_CONTRAST = 25.0  # grey levels, in the channel with the largest difference
_SUBPIXEL_BITS = 4  # cv2 draws with a precision of 1/16 pixel


@dataclasses.dataclass(frozen=True)
class ShapesSpec:
    """All parameters of the data set; they determine every byte of it.

    ``size`` is the image side in pixels; ``min_radius`` and ``max_radius`` are half the longer side of an
    instance's box, in pixels; ``bend`` is the amplitude of the bending field relative to the instance;
    ``stretch`` the largest ratio of the two axes; ``texture`` the contrast of the background in grey levels;
    ``strokes`` the largest number of clutter strokes.
    """

    train: int = 640
    val: int = 128
    size: int = 128
    max_instances: int = 4
    min_radius: float = 13.0
    max_radius: float = 52.0
    bend: float = 0.2
    stretch: float = 4.0
    texture: float = 12.0
    strokes: int = 3
    seed: int = 0


def make_shapes(root: str | os.PathLike, spec: ShapesSpec | None = None) -> bool:
    """Write the data set to ``root``, unless the same one is already there.

    ``root/{train,val}/*.png`` are the images, ``root/annotations/{train,val}.json`` the COCO files and
    ``root/shapes.json`` the parameters. The folder is created atomically.

    Returns:
        whether anything was written.

    Raises:
        FileExistsError: ``root`` contains shapes with other parameters, or other files.
    """
    root, spec = expanded(root), spec or ShapesSpec()
    record = {"version": VERSION, **dataclasses.asdict(spec)}
    if read_beside(root / SPEC_FILE, json.loads) == record:
        return False
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise FileExistsError(f"{root}: expected no files, or those of make_shapes with the same parameters")
    with replacing(root) as partial:
        (partial / "annotations").mkdir(parents=True)
        for split in SPLITS:
            (partial / split).mkdir()
            _write_split(partial, split, spec)
        (partial / SPEC_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return True


def draw_image(spec: ShapesSpec, split: str, index: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw image ``index`` of a split; return its pixels and instances.

    The result depends only on the arguments, so a larger set starts with the images of a smaller one.

    Returns:
        image  # [size, size, 3], uint8, BGR
        instances: dicts with ``label`` (index into CLASSES) and ``polygon`` ([vertices, 2], (x, y) in
        pixels, pixel centres at halves). They do not overlap and are inside the image.
    """
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), index])
    size = spec.size
    image = _background(rng, spec)
    taken = np.zeros((size, size), np.uint8)
    instances: list[dict] = []
    for _ in range(rng.integers(min(2, spec.max_instances), spec.max_instances, endpoint=True)):
        for _ in range(30):  # attempts to find free space
            label = int(rng.integers(len(CLASSES)))
            radius = math.exp(rng.uniform(math.log(spec.min_radius), math.log(spec.max_radius)))
            polygon = _outline(label, rng, spec) * radius
            margin = np.abs(polygon).max(0) + 1.0
            centre = rng.uniform(np.minimum(margin, size / 2), np.maximum(size - margin, size / 2))
            # rounded like the annotations, so that both agree exactly
            polygon = np.clip(polygon + centre, 0, size).round(2)
            # pixel centres are at integers in cv2, at halves in COCO
            cover = _cover(cv2.fillPoly, polygon - 0.5, size, 255)
            inside = cover > 0.5
            if polygon_area(polygon) < _MIN_AREA or taken[inside].any():
                continue
            _paint(image, cover, _colour_on(image[inside].mean(0), rng), rng)
            cv2.bitwise_or(taken, cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)), taken)
            instances.append({"label": label, "polygon": polygon})
            break
    return np.clip(image, 0, 255).astype(np.uint8), instances


def _write_split(root: Path, split: str, spec: ShapesSpec) -> None:
    builder = Builder(Dataset(dict.fromkeys(CLASSES)), ReadOptions())
    for index in range(getattr(spec, split)):
        pixels, instances = draw_image(spec, split, index)
        file = root / split / f"{index:05d}.png"
        if not cv2.imwrite(str(file), pixels):
            raise OSError(f"{file}: cannot write the image")
        builder.add(split, file, enumerate(instances), _object)
    builder.data.write(root / "annotations" / f"{split}.json")


def _object(instance: dict[str, Any], size: tuple[int, int], builder: Builder) -> Object:
    return builder.new_polygons(CLASSES[instance["label"]], [instance["polygon"].tolist()], size)


def _rotation(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _bend(points: np.ndarray, rng: np.random.Generator, amplitude: float) -> np.ndarray:
    """Move points by a smooth random field: each axis by a sine wave along the other one."""
    points = points @ _rotation(rng).T
    phase, frequency = rng.uniform(0, 2 * math.pi, 2), rng.uniform(1.2, 2.2, 2)
    amplitudes = amplitude * rng.uniform(0.3, 1, 2)
    return points + amplitudes * np.sin(frequency * points[:, ::-1] + phase)


def _outline(label: int, rng: np.random.Generator, spec: ShapesSpec) -> np.ndarray:
    """Return a deformed outline of a class, centred on its box, larger half-extent 1.  # [vertices, 2]"""
    t = np.linspace(0, 2 * math.pi, _VERTICES, endpoint=False)
    depth, count = _ARMS[label]
    r = 1 + depth * np.cos(count * t)
    points = _bend(np.stack([r * np.cos(t), r * np.sin(t)], 1), rng, spec.bend)
    axis = spec.stretch ** (rng.uniform(0, 1) / 2)  # axis² is the ratio, in [1, stretch]
    points = (points * [axis, 1 / axis]) @ _rotation(rng).T
    points -= (points.max(0) + points.min(0)) / 2
    return points / np.abs(points).max()


def _cover(draw: Callable, points: np.ndarray, size: int, *options: object) -> np.ndarray:
    """Return the share of each pixel that the drawn points cover, 0 to 1.  # [size, size]"""
    cover = np.zeros((size, size), np.uint8)
    points = np.round(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    draw(cover, [points], *options, cv2.LINE_AA, _SUBPIXEL_BITS)
    return cover.astype(np.float32) / 255


def _paint(image: np.ndarray, cover: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    grain = rng.normal(0, 9, image.shape)
    image += cover[..., None] * (colour + grain - image)


def _colour_on(under: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose a bright colour that differs from the background below it.  # [3]"""
    while True:
        colour = rng.uniform(120, 255, 3)
        if np.abs(colour - under).max() >= _MIN_CONTRAST:
            return colour


def _background(rng: np.random.Generator, spec: ShapesSpec) -> np.ndarray:
    """Draw a dark colour with texture at four scales, pixel noise and strokes.  # [size, size, 3]"""
    size = spec.size
    image = np.tile(rng.uniform(10, 90, 3), (size, size, 1))
    for cells in (4, 8, 16, 32):
        noise = rng.normal(0, spec.texture / 2, (cells, cells, 3))
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0, 6, image.shape)
    for _ in range(rng.integers(0, spec.strokes, endpoint=True)):  # thin bent lines
        line = np.stack([np.linspace(-1, 1, 24), np.zeros(24)], 1) * rng.uniform(0.2, 0.6)
        line = _bend(line, rng, 0.3) @ _rotation(rng).T * size / 2 + rng.uniform(0, size, 2)
        thickness = int(rng.integers(1, 2, endpoint=True))
        cover = _cover(cv2.polylines, line, size, False, 255, thickness)
        _paint(image, cover, rng.uniform(60, 220, 3), rng)
    return image
