"""Detections of many pictures as a folder of files, which grows while they are detected."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import replacing, write_text

ROWS = 256  # of a part
RECORD = "results.json"  # in the folder: the model and the settings of all rows
_START = '{"path": '


class Parts:
    """A folder of results, in files of some hundred rows that are written at once or not at all.

    Several processes may write to one folder. A row has the keys of :meth:`Detections.to_row`, and ``error``
    for a picture that cannot be decoded. :meth:`Detections.from_row` reads a row.

    Args:
        folder: is created.
        kind: ``"jsonl"``, a JSON object per line; ``"parquet"``, which requires pyarrow.
        settings: of the detector, such as its checksum and thresholds; None: not compared.

    Raises:
        UserError: the folder has results of other settings, or cannot be written.
        ImportError: pyarrow is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: Literal["jsonl", "parquet"],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.kind = Path(folder), kind
        self.rows: list[dict] = []
        self.written = 0
        if kind == "parquet":
            import pyarrow.parquet  # noqa: F401  before the work
        if settings is None:
            return
        record, expected = self.folder / RECORD, json.loads(json.dumps({"format": kind, **settings}))
        if not record.exists():
            write_text(record, json.dumps(expected, indent=1))
        try:
            existing = json.loads(record.read_text(encoding="utf-8"))
            different = [name for name, value in expected.items() if existing[name] != value]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"out: expected a folder of these results, got another {record}") from None
        if different:
            name = different[0]
            raise UserError(
                f"out: expected a folder with results of {name}={expected[name]}, got {folder}, with "
                f"{name}={existing[name]}; use another folder"
            )

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None or not issubclass(kind, UserError):  # such as a full disk
            self.flush()

    def missing(self, images: Iterable[str]) -> list[str]:
        """Return the pictures that have no row."""
        done = {path for file in self.folder.glob(f"*.{self.kind}") for path in _paths(file)}
        return [image for image in images if image not in done]

    def add(self, row: dict) -> None:
        """Add the row of a picture; write a part if there are enough."""
        self.rows.append(row)
        if len(self.rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that no part has yet."""
        if not self.rows:
            return
        # a task that a cluster repeats writes the same file
        name = hashlib.sha256(self.rows[0]["path"].encode()).hexdigest()[:32]
        file = self.folder / f"part-{name}.{self.kind}"
        if self.kind == "jsonl":
            write_text(file, "".join(f"{json.dumps(row)}\n" for row in self.rows))
        else:
            import pyarrow as pa
            import pyarrow.parquet

            with replacing(file) as partial:
                pa.parquet.write_table(pa.Table.from_pylist(self.rows, schema()), partial)
        self.written += len(self.rows)
        self.rows = []


def schema() -> Any:
    import pyarrow as pa

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    columns = {"path": pa.string(), "width": pa.int32(), "height": pa.int32(), "boxes": pa.list_(numbers)}
    columns |= {"scores": numbers, "labels": pa.list_(pa.int32()), "names": texts, "masks": texts}
    return pa.schema({**columns, "error": pa.string()})


def _paths(file: Path) -> Iterator[str]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(file, columns=["path"])["path"].to_pylist()
        return
    decoder = json.JSONDecoder()
    with open(file, encoding="utf-8") as lines:
        for line in lines:  # without the boxes and masks
            yield decoder.raw_decode(line, len(_START))[0]


def rows(folder: str | Path) -> Iterator[dict]:
    """Yield the rows of a folder, in no fixed order."""
    for file in sorted(Path(folder).glob("part-*")):
        if file.suffix == ".parquet":
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(file).to_pylist()
        else:
            with open(file, encoding="utf-8") as lines:
                yield from map(json.loads, lines)


def detect_into(parts: Parts, detector: Any, images: list[str], **options: Any) -> list[str]:
    """Detect the objects in pictures; write their rows.

    Args:
        options: of the call of the detector.

    Returns:
        A line for each picture that was skipped. Those that cannot be opened have no row, so that the next
        call tries them again.
    """
    results = detector(images, **options)
    with parts:
        for result in results:
            parts.add(result.to_row())
        for skipped in results.skipped:
            if skipped.is_opened:
                parts.add({"path": skipped.path, "error": str(skipped)})
    return results.skipped
