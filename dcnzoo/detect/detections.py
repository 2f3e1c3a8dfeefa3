"""The result of a detector: the objects in a picture. Requires only numpy."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcnzoo.detect.crops import Crops
from dcnzoo.utils.files import expanded, replacing
from dcnzoo.utils.text import few

if TYPE_CHECKING:
    import PIL.Image
    import supervision


SCORE_THRESHOLD = 0.3  # of detectors without another one
SAME = 0.8  # least IoU of two boxes that count as the same


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects in a picture, best first; boxes and masks are in pixels of the picture.

    ``result[0]``, ``result[:5]`` and ``result[result.scores > 0.8]`` select objects, and a loop visits them
    one by one; each is a ``Detections``. A notebook shows the picture.
    """

    boxes: np.ndarray  # [K, 4], float32, (x1, y1, x2, y2)
    scores: np.ndarray  # [K], float32
    labels: np.ndarray  # [K], int64, indices into classes
    crops: Crops | None = None  # the masks; [K, H, W], bool, is converted; None if the model predicts none
    classes: tuple[str, ...] = ()  # all names that the detector has; empty if unknown
    image: np.ndarray | None = None  # [H, W, 3], uint8, RGB
    path: str = ""  # of the picture, if it was read from a file
    model: str = ""  # the name of the detector's model; empty if no detector found the objects
    seconds: float = 0.0  # of reading and detecting; of a batch, its time divided by its pictures

    def __post_init__(self) -> None:
        if isinstance(self.crops, np.ndarray):
            object.__setattr__(self, "crops", Crops.of(self.crops))

    @property
    def masks(self) -> np.ndarray | None:  # [K, H, W], bool
        """The masks at the picture's size, computed at each access; ``crops[0]`` is one of them."""
        return None if self.crops is None else self.crops.whole()

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | np.ndarray) -> Detections:
        if isinstance(index, int | np.integer):
            index = range(len(self))[index]  # raises IndexError, which also ends a loop
            index = slice(index, index + 1)
        crops = None if self.crops is None else self.crops[index]
        return dataclasses.replace(
            self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index], crops=crops
        )

    def __iter__(self) -> Iterator[Detections]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        counts = Counter(self.names).most_common()
        return f"Detections({', '.join(f'{count} {name}' for name, count in counts) or 'none'})"

    @property
    def names(self) -> list[str]:
        """The class of each object."""
        known = range(len(self.classes))
        return [self.classes[label] if label in known else str(label) for label in self.labels.tolist()]

    def with_boxes(self) -> Detections:
        """Return the objects with the boxes of their masks, if all boxes are zeros, as SOLO's are."""
        if self.crops is None or self.boxes.any():
            return self
        return dataclasses.replace(self, boxes=self.crops.boxes())

    def with_one_label(self) -> Detections:
        """Return the objects without the worse one of two labels on one box (IoU ≥ 0.8)."""
        chosen: list[int] = []
        for i in range(len(self)):
            others = np.array(chosen, int)[self.labels[chosen] != self.labels[i]]
            if (iou(self.boxes[i : i + 1], self.boxes[others]) < SAME).all():
                chosen.append(i)
        return self[np.array(chosen, int)]

    def draw(self, with_scores: bool = True, every_label: bool = False) -> PIL.Image.Image:
        """Draw boxes, masks and names on the picture. Small pictures are enlarged to 600 pixels in width.

        Args:
            every_label: also draw the worse one of two labels on one box (IoU ≥ 0.8).
        """
        from dcnzoo.detect.drawing import draw

        if self.image is None:
            raise ValueError("image: expected the result of a detector, which has its picture, got none")
        return draw(self.image, self if every_label else self.with_one_label(), with_scores)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Draw the objects into a picture file; its ending determines the format. Replaces the file."""
        from PIL import Image

        from dcnzoo.detect.drawing import encoded

        kind = Image.registered_extensions().get(Path(path).suffix.lower())
        if kind not in Image.SAVE:  # or Pillow only reads it
            raise ValueError(f"path: expected a name that ends in .png or .jpg, got {path}")
        with replacing(expanded(path)) as partial:
            partial.write_bytes(encoded(self.draw(), kind))

    def _repr_png_(self) -> bytes | None:
        """Return the drawn picture for a notebook; None without a picture."""
        if self.image is None:
            return None
        from dcnzoo.detect.drawing import encoded

        return encoded(self.draw(), "PNG")

    def to_supervision(self) -> supervision.Detections:
        """Return ``supervision.Detections``, with the names as ``data["class_name"]``."""
        import supervision

        names = np.array(self.names, dtype=str)
        return supervision.Detections(
            self.boxes, self.masks, self.scores, self.labels, data={"class_name": names}
        )

    def to_coco(self, content: dict[str, Any] | None = None, *, polygons: bool = False) -> dict[str, Any]:
        """Return the content of a COCO file, or append to ``content``, the result of an earlier call.

        Category ids start at 1, in the order of the classes. File names stay as they were given.

        Args:
            polygons: write masks as polygons, without their holes, not in run-length encoding. Requires
                OpenCV.

        Raises:
            ValueError: ``content`` is of a detector with other classes.
        """
        if content is None:
            categories = [{"id": number, "name": name} for number, name in enumerate(self.classes, 1)]
            content = {"info": {"description": f"detections of {self.model or 'a detector'}"}}
            content |= {"categories": categories, "images": [], "annotations": []}
        names = [category["name"] for category in content.get("categories", ())]
        if names and names != [*self.classes]:
            raise ValueError(f"content: expected the categories {few(self.classes)}, got {few(names)}")
        images, annotations = content["images"], content["annotations"]
        images.append({"id": len(images) + 1, "file_name": self.path})
        if self.image is not None:
            images[-1] |= {"width": self.image.shape[1], "height": self.image.shape[0]}
        rows = zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True)
        for i, ((x1, y1, x2, y2), label, score) in enumerate(rows):
            entry = {"id": len(annotations) + 1, "image_id": len(images), "category_id": label + 1}
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            if self.crops is not None:
                entry |= self.crops.segmentation(i, polygons)
            annotations.append({**entry, "iscrowd": 0, "score": score})
        return content


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:  # [N, 4], [M, 4] -> [N, M]
    shared = shared_areas(one, other)
    area, areas = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other))
    return shared / np.maximum(area[:, None] + areas - shared, 1e-9)


def shared_areas(one: np.ndarray, other: np.ndarray) -> np.ndarray:  # [N, 4], [M, 4] -> [N, M]
    sides = np.minimum(one[:, None, 2:], other[:, 2:]) - np.maximum(one[:, None, :2], other[:, :2])
    return sides.clip(0).prod(-1)
