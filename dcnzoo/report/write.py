"""Write the report of trainings to a file: used by ``dcnzoo report`` and ``dcnzoo train --report``."""

from collections.abc import Sequence
from pathlib import Path

from dcnzoo.utils.errors import user_errors
from dcnzoo.utils.files import write_text
from dcnzoo.utils.jsonl import versions


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    labels: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    images: int = 5,
    device: str = "cpu",
    allow_partial: bool = False,
) -> Path:
    """Write the page of :func:`dcnzoo.report.report.render_runs` atomically; return its path.

    Args:
        folders: work directories.
        out: the file (default: ``report.html`` in the first folder).
        labels: of the folders (default: their names).
        checkpoint: of the first folder (default: the last checkpoint).
        device: on which the detectors run.
        allow_partial: if a checkpoint does not fit its config, load the parameters that fit.

    Raises:
        UserError: a folder contains no training, or a checkpoint does not fit.
    """
    from dcnzoo.report.report import TrainedRun, load_detectors, render_runs

    names = labels or [None] * len(folders)
    checkpoints = [checkpoint, *[None] * (len(folders) - 1)]
    with user_errors():
        runs = [TrainedRun.read(*each) for each in zip(folders, names, checkpoints, strict=True)]
        detectors = load_detectors(runs, device, allow_partial)
    page = render_runs(runs, detectors, images=images, footer=footer())
    out = out or folders[0] / "report.html"
    write_text(out, page)
    return out


def footer() -> str:
    return "made with " + ", ".join(f"{name} {version}" for name, version in versions().items())
