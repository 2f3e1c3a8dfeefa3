"""What an export returns: the written file, and how far its detections agree with PyTorch's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dcnzoo.detect.exported import ExportedDetector
from dcnzoo.utils.findings import Finding


class Difference(NamedTuple):
    """In what two detections differ most."""

    tolerances: float
    text: str


@dataclass(frozen=True)
class Agreement:
    """How many detections of a file and of PyTorch match.

    Attributes:
        matched: number of pairs.
        number: the larger of the two numbers of detections.
        largest: the largest difference of detections that do not match.
        mask_iou: the least IoU of the masks of boxes that match; None without masks.
    """

    matched: int
    number: int
    largest: Difference | None = field(default=None, compare=False)
    mask_iou: float | None = field(default=None, compare=False)

    @property
    def holds(self) -> bool:
        """At least 99 % match. Where two boxes overlap by exactly NMS's threshold, rounding decides."""
        return self.number > 0 and self.matched >= 0.99 * self.number

    def __add__(self, other: "Agreement") -> "Agreement":
        largest = max((each for each in (self.largest, other.largest) if each), default=None)
        overlaps = [each for each in (self.mask_iou, other.mask_iou) if each is not None]
        numbers = self.matched + other.matched, self.number + other.number
        return Agreement(*numbers, largest, min(overlaps, default=None))

    def __str__(self) -> str:
        if not self.number:
            return "not compared: neither PyTorch nor the file detects an object in the picture; give another"
        text = f"{self.matched} of {self.number} detections agree between PyTorch and the file"
        if self.mask_iou is not None:
            text += f"; the least IoU of masks is {self.mask_iou:.3f}"
        return f"{text}; the largest difference: {self.largest.text}" if self.largest else text


@dataclass(frozen=True)
class ExportResult:
    """A written file.

    Attributes:
        files: the file; for an ``.xml`` file also its ``.bin`` file.
        shape: height and width of the input; None if they are dynamic.
        findings: what the file cannot do.
        agreement: with PyTorch, if they were compared.
    """

    files: tuple[Path, ...]
    shape: tuple[int, int] | None
    findings: tuple[Finding, ...] = ()
    agreement: Agreement | None = None

    def load(self, **options: Any) -> ExportedDetector:
        """Open the file; options: those of :class:`dcnzoo.export.Detector`."""
        return ExportedDetector(self.files[0], **options)

    def __str__(self) -> str:
        megabytes = sum(file.stat().st_size for file in self.files) / 2**20
        size = f"input {self.shape[0]} × {self.shape[1]}" if self.shape else "dynamic height and width"
        lines = [f"written: {', '.join(map(str, self.files))} ({megabytes:.1f} MiB), {size}"]
        if self.agreement is not None:
            lines.append(str(self.agreement))
        return "\n".join(lines)
