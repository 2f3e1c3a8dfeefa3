"""The one type of everything that a check finds: in a data set, a config, an exported file, the set-up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A problem that a check has found. The command line decides how it is shown.

    Attributes:
        subject: what has the problem: a file with its line, a key of a config, a layer, a runtime.
        text: the problem; where it applies, the expected and the actual value.
        kind: key of the check's table of kinds, for programs.
        remedy: the command or the change that solves it.
        source: the page that documents it.
        stops: whether the work cannot be done until it is solved; otherwise it is a warning.
    """

    subject: str
    text: str
    kind: str = ""
    remedy: str = ""
    source: str = ""
    stops: bool = True

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}" if self.subject else self.text
