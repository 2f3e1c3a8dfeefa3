"""The one type of everything that a check finds: in a data set, a config, an exported file, the set-up."""

from collections.abc import Sequence
from dataclasses import dataclass

from dcnzoo.utils.errors import printable
from dcnzoo.utils.text import cut

_SHOWN = 20


@dataclass(frozen=True)
class Finding:
    """A problem that a check has found. The command line decides how it is shown.

    Attributes:
        subject: what has the problem: a file with its line, a key of a config, a layer, a runtime.
        text: the problem; where it applies, the expected and the actual value.
        kind: key of the check's table of kinds, for programs.
        remedy: the command or the change that solves it.
        stops: whether the work cannot be done until it is solved; otherwise it is a warning.
    """

    subject: str
    text: str
    kind: str = ""
    remedy: str = ""
    stops: bool = True

    def __str__(self) -> str:
        return f"{self.subject}: {self.text}" if self.subject else self.text


def shown(findings: Sequence[Finding], prefix: str = "") -> list[str]:
    """Return one line for each of the first findings, and the number of the others."""
    lines = [f"{prefix}{finding}" for finding in findings[:_SHOWN]]
    if len(findings) > _SHOWN:
        lines.append(f"… and {len(findings) - _SHOWN} more")
    return [cut(printable(line), 500) for line in lines]
