"""Measure the sampling points of a trained detector's deformable layers, by the size of the object."""

import csv
import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from study_results import write_csv
from torch import Tensor

from dcnzoo.report.detector import Prediction, ValidationRunner
from dcnzoo.report.report import TrainedRun
from dcnzoo.report.sampling import SamplingField, effective_dilation

# The longer side of an object's box in pixels: thirds of the generated sizes, on a logarithmic scale
REGIONS = {"small": (0, 41), "medium": (41, 66), "large": (66, np.inf), "background": None}


@dataclasses.dataclass(frozen=True)
class SamplingRow:
    """One layer of one detector in one region of the validation images.

    Attributes:
        outputs: number of output locations with their centre in the region.
        dilation, dilation_std: effective dilation, mean and standard deviation over the locations.
        on_object: share of the sampling weight on the centre's object; None in the background.
        on_object_regular: the same for an ordinary convolution, without offsets and modulation.
    """

    arm: str
    seed: int
    layer: str
    region: str
    outputs: int
    dilation: float
    dilation_std: float
    on_object: float | None
    on_object_regular: float | None


COLUMNS = tuple(field.name for field in dataclasses.fields(SamplingRow))
IMAGES = 64  # about 200 objects and 10,000 locations of the coarsest layer


def read_sampling(file: Path) -> list[SamplingRow]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return [
            SamplingRow(
                row["arm"],
                int(row["seed"]),
                row["layer"],
                row["region"],
                int(row["outputs"]),
                float(row["dilation"]),
                float(row["dilation_std"]),
                *(float(row[name]) if row[name] else None for name in COLUMNS[-2:]),
            )
            for row in csv.DictReader(lines)
        ]


def measure_sampling(run: TrainedRun, arm: str, seed: int, file: Path) -> None:
    """Measure every deformable layer of a detector on validation images, and add the rows to a file."""
    detector = ValidationRunner(run.cfg, run.checkpoint)
    # (layer, region) → effective dilation, share on the object, share without offsets, of each location
    found: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for index in range(min(IMAGES, len(detector.dataset))):
        prediction = detector.predict(index)
        for field in prediction.fields:
            for region, values in in_regions(prediction, field):
                found[field.name, region].append(values)
    rows = [row for row in read_sampling(file) if (row.arm, row.seed) != (arm, seed)]
    for (layer, region), parts in found.items():
        values = torch.cat(parts, 1).double()
        on_object = values[1:].mean(1).tolist() if region != "background" else (None, None)
        mean, std = values[0].mean().item(), values[0].std().item()
        rows.append(SamplingRow(arm, seed, layer, region, values.shape[1], mean, std, *on_object))
    rows.sort(key=lambda row: (row.arm, row.seed, row.layer, list(REGIONS).index(row.region)))
    lines = map(dataclasses.asdict, rows)
    digits = [{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in line.items()} for line in lines]
    write_csv(file, COLUMNS, digits)


def in_regions(prediction: Prediction, field: SamplingField) -> list[tuple[str, Tensor]]:
    """Measure one layer on one image.

    Returns:
        For each object and for the background, the region and a [3, N] tensor: effective dilation, share of
        the weight on the object, the same without offsets. N locations have their centre in the region.
    """
    masks = torch.from_numpy(prediction.truth.masks)
    size = torch.tensor(prediction.image_size)
    centres = field.grid.unflatten(0, field.kernel_size)
    centres = centres[field.kernel_size[0] // 2, field.kernel_size[1] // 2]  # [2, oH, oW]
    scale = size / torch.tensor(field.input_size)
    dilation = effective_dilation(field)
    result = []
    for mask, box in zip(masks, prediction.truth.boxes, strict=True):
        inside = pick(mask, centres * scale[:, None, None])
        side = max(box[2] - box[0], box[3] - box[1])
        (region,) = [name for name, limits in REGIONS.items() if limits and limits[0] <= side < limits[1]]
        shares = [share_on(mask, each, scale)[inside] for each in (field, field.without_offset())]
        result.append((region, torch.stack([dilation[inside], *shares])))
    outside = ~pick(masks.any(0), centres * scale[:, None, None])
    result.append(("background", torch.stack([dilation[outside]] * 3)))
    return result


def share_on(mask: Tensor, field: SamplingField, scale: Tensor) -> Tensor:  # [oH, oW]
    """Return the share of each location's sampling weight on the mask."""
    on = pick(mask, (field.points * scale[:, None, None]).transpose(0, 1))
    return (field.weight * on).sum(0) / field.weight.sum(0).clamp(min=1e-6)


def pick(mask: Tensor, points: Tensor) -> Tensor:
    """Read a mask, [H, W], at points of the image, [2, …] in (y, x). Outside the image it is False."""
    y, x = points.round().long()
    height, width = mask.shape
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return mask[y.clamp(0, height - 1), x.clamp(0, width - 1)] & inside
