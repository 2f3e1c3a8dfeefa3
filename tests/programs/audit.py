"""Imported by a config. Logs to ``$AUDIT.RANK`` which files under ``$AUDITED`` this process writes."""

import os
import sys

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_notes = open(f"{os.environ['AUDIT']}.{os.environ['RANK']}", "a", buffering=1)  # noqa: SIM115 stays open


def _watch(event: str, arguments: tuple) -> None:
    if event == "open" and not (arguments[2] or 0) & _WRITES:
        return
    if event in ("open", "os.rename", "os.remove", "os.truncate"):
        for path in arguments[: 2 if event == "os.rename" else 1]:
            path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
            if os.path.abspath(path).startswith(os.environ["AUDITED"]):
                _notes.write(f"{path}\n")


sys.addaudithook(_watch)
