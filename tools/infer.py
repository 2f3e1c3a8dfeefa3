"""Detect objects in images: ``python tools/infer.py IMAGE… --model NAME``, also ``dcnzoo infer``.

Prints a table per image, and writes the images with their detections drawn and one ``detections.json``
in COCO's form, all into one folder.

examples:
  dcnzoo infer street.jpg --model faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco
  dcnzoo infer images/*.jpg --model CONFIG --checkpoint epoch_12.pth --score-threshold 0.5 --out found
"""

import argparse
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from dcnzoo.utils.errors import UserError, command, user_errors

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
import numpy as np
from mmengine.structures import InstanceData
from rich.console import Console
from rich.table import Table

from dcnzoo.cli._arguments import add_model_arguments, load_model
from dcnzoo.cli._images import read_image, require_images
from dcnzoo.report import Instances, plot_detections
from dcnzoo.utils.files import write_bytes, write_text
from dcnzoo.utils.progress import make_progress


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, default="work_dirs/infer", help="folder (default: %(default)s)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, help="leave out what scores less (default: 0.3)"
    )
    return parser.parse_args()


@command
def main() -> None:
    args = parse_args()
    if not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold: expected 0 to 1, got {args.score_threshold}")
    require_images(args.images)
    detector = load_model(args)
    from mmdet.apis import inference_detector
    from mmdet.visualization.palette import get_palette

    classes = detector.dataset_meta["classes"]
    palette = get_palette(detector.dataset_meta["palette"], len(classes))
    console, file = Console(highlight=False, markup=False), CocoDetections(classes)
    pictures = picture_names(args.images)
    hidden = not (console.is_terminal and len(args.images) > 1)
    with make_progress(console, disable=hidden, transient=True) as progress:
        bar = progress.add_task("detecting", total=len(args.images), note="")
        for path, picture in zip(args.images, pictures, strict=True):
            progress.update(bar, note=Path(path).name)
            image = read_image(path)
            with user_errors():
                sample = inference_detector(detector, path)
            if "pred_instances" not in sample:
                raise UserError(f"model: expected a detector, got one that finds {', '.join(sample.keys())}")
            found = sample.pred_instances.cpu()
            found = found[found.scores >= args.score_threshold]
            found = found[found.scores.argsort(descending=True)]
            file.add(path, sample.ori_shape, found)
            write_bytes(args.out / picture, draw(image, found, classes, palette))
            show(path, found, classes, console)
            progress.advance(bar)
    write_text(args.out / "detections.json", json.dumps(file.content))
    written = f"{args.out / pictures[0]}" if len(pictures) == 1 else f"{len(pictures)} pictures in {args.out}"
    console.print(f"written: {written} and {args.out / 'detections.json'}", soft_wrap=True)


def picture_names(images: Sequence[str]) -> list[str]:
    """A name for each, ``dog.png`` and, for another image of that name, ``dog_2.png``."""
    names: list[str] = []
    for image in images:
        stem, number = Path(image).stem, 1
        while (name := f"{stem}_{number}.png" if number > 1 else f"{stem}.png") in names:
            number += 1
        names.append(name)
    return names


def draw(
    image: np.ndarray, found: InstanceData, classes: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> bytes:
    """A PNG as wide as the image, or 600 pixels."""
    found = found[found.scores.argsort()]  # the best on top
    masks = found.masks.numpy() if "masks" in found else None
    instances = Instances(found.bboxes.numpy(), found.labels.numpy(), masks, found.scores.numpy())
    figure = plot_detections([image], {"": [instances]}, classes, palette, threshold=0.0)
    height, width = image.shape[:2]
    figure.set_size_inches(6, 6 * height / width)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=max(100, width / 6))
    return buffer.getvalue()


def show(path: str, found: InstanceData, classes: Sequence[str], console: Console) -> None:
    count = len(found) or "none"
    console.print(f"{path}: {count} found", soft_wrap=True)
    if not len(found):
        return
    table = Table(box=None, pad_edge=True)
    table.add_column("class")
    for head in ("score", "x1", "y1", "x2", "y2"):
        table.add_column(head, justify="right")
    for label, score, box in rows(found):
        table.add_row(classes[label], f"{score:.3f}", *(f"{value:.1f}" for value in box))
    console.print(table)


def rows(found: InstanceData) -> Iterable[tuple[int, float, list[float]]]:
    return zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True)


class CocoDetections:
    """What was found, in COCO's form; the categories count from 1 in the order of the model's classes."""

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


if __name__ == "__main__":
    main()
