"""Configuration and environment."""

import difflib
import re
from collections.abc import Sequence

from dcnzoo.report import page
from dcnzoo.report.page import Section
from dcnzoo.report.runs import TrainedRun, by_label
from dcnzoo.utils.files import files_beside


def show_configuration(runs: Sequence[TrainedRun]) -> Section:
    parts = []
    firsts = [seeds[0] for seeds in by_label(runs).values()]
    for other in firsts[1:]:
        lines = difflib.unified_diff(
            _settings(firsts[0]), _settings(other), firsts[0].label, other.label, n=2, lineterm=""
        )
        difference = "\n".join(lines) or "no differences"
        parts.append(page.fold(f"Differences of {other.label} from {firsts[0].label}", page.text(difference)))
    parts += [page.fold(f"Config of {run.label}", page.text(run.cfg.pretty_text)) for run in firsts]
    return Section("Configuration", "", parts)


def _settings(run: TrainedRun) -> list[str]:
    return [line for line in run.cfg.pretty_text.splitlines() if not line.startswith("work_dir")]


def show_environment(runs: Sequence[TrainedRun]) -> Section:
    """Show the environment from the last start's log: the report may be written on another machine."""
    parts = []
    for seeds in by_label(runs).values():
        logs = sorted(files_beside(seeds[0].folder, "*/*.log"))
        text = logs[-1].read_text(encoding="utf-8", errors="replace") if logs else ""
        match = re.search(r"^System environment:\n(.*?)^-{20,}$", text, re.DOTALL | re.MULTILINE)
        if match:
            parts.append(page.fold(f"Environment of {seeds[0].label}", page.text(match[1].rstrip())))
    return Section("Environment", "", parts)
