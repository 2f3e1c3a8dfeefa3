"""The checksum of an exported file, in its own metadata: a damaged file is an error, not a bad detector."""

import hashlib
import os
import re
from pathlib import Path

from dcnzoo.utils.files import add_file

KEY = "dcnzoo.sha256"  # in the metadata; its value is zero while the checksum is computed
BLANK = "0" * 64
_ENTRY = re.compile(re.escape(KEY).encode() + rb".{1,40}?([0-9a-f]{64})", re.DOTALL)


def seal(path: str | os.PathLike) -> None:
    """Write the checksum into a file whose metadata has :data:`KEY`."""
    content = Path(path).read_bytes()
    entry = _ENTRY.search(content)
    if entry is None:
        return
    digest = _digest(Path(path), content, entry)
    Path(path).write_bytes(content[: entry.start(1)] + digest + content[entry.end(1) :])


def require_intact(path: str | os.PathLike) -> None:
    """Raise ValueError if a file has a checksum that does not fit its content."""
    content = Path(path).read_bytes()
    entry = _ENTRY.search(content)
    if entry is not None and _digest(Path(path), content, entry) != entry[1]:
        raise ValueError(
            f"{path}: expected the content that was exported: the file is damaged or was edited; open a file "
            "that you changed on purpose with dcnzoo.load(path, edited=True)"
        )


def _digest(path: Path, content: bytes, entry: re.Match) -> bytes:
    """The checksum of a file, and of the weights of OpenVINO's IR, which are in another file."""
    checksum = hashlib.sha256(content[: entry.start(1)] + BLANK.encode() + content[entry.end(1) :])
    if path.suffix == ".xml":
        add_file(checksum, path.with_suffix(".bin"))
    return checksum.hexdigest().encode()
