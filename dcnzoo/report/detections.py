"""A detector's results on images: as rows, as a picture, and as a COCO file."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from mmengine.structures import InstanceData

from dcnzoo.export.picture import read
from dcnzoo.report.plots import Instances, plot_detections
from dcnzoo.utils.errors import user_errors


def read_image(path: str) -> np.ndarray:  # [H, W, 3], uint8, RGB
    """Read an image in the same way as MMDetection's pipelines, but as RGB."""
    with user_errors():
        return read(path)[..., ::-1].copy()


def picture_names(images: Sequence[str]) -> list[str]:
    """Return a unique name for each image: ``dog.png``, then ``dog_2.png`` for another ``dog``."""
    names: list[str] = []
    for image in images:
        stem, number = Path(image).stem, 1
        while (name := f"{stem}_{number}.png" if number > 1 else f"{stem}.png") in names:
            number += 1
        names.append(name)
    return names


def draw_detections(
    image: np.ndarray, found: InstanceData, classes: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> bytes:
    """Draw detections on an image; return a PNG as wide as the image, at least 600 pixels."""
    instances = Instances.of(found[found.scores.argsort()])  # draw the best on top
    height, width = image.shape[:2]
    size = (6, 6 * height / width)
    figure = plot_detections([image], {"": [instances]}, classes, palette, threshold=0.0, size=size)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=max(100, width / 6))
    return buffer.getvalue()


def rows(found: InstanceData) -> Iterable[tuple[int, float, list[float]]]:
    """Iterate over label, score and box of each detection."""
    return zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True)


class CocoDetections:
    """Detections in COCO's format. Category ids start at 1, in the order of the model's classes."""

    def __init__(self, classes: Sequence[str]) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
        self.content: dict[str, list] = {"images": [], "categories": categories, "annotations": []}

    def add(self, path: str, shape: tuple[int, int], found: InstanceData) -> None:
        from mmdet.structures.mask import encode_mask_results

        image = len(self.content["images"]) + 1
        self.content["images"].append({"id": image, "file_name": path, "width": shape[1], "height": shape[0]})
        masks = encode_mask_results(found.masks.numpy()) if "masks" in found else [None] * len(found)
        for (label, score, (x1, y1, x2, y2)), mask in zip(rows(found), masks, strict=True):
            annotation = {
                "id": len(self.content["annotations"]) + 1,
                "image_id": image,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            if mask is not None:
                annotation["segmentation"] = {**mask, "counts": mask["counts"].decode()}
            self.content["annotations"].append(annotation)
