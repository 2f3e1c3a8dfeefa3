"""Detections of many pictures as a folder of files, which grows while they are detected."""

import contextlib
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Literal

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import Results
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import is_video, replacing, write_text

ROWS = 256  # of a part
SECONDS = 60  # after which a part has fewer rows
WAITING = 4  # results in memory that are not written yet
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
        self._flushed = time.monotonic()
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

    def missing(self, images: Iterable[str], changed: bool = False) -> list[str]:
        """Return the pictures that have no row; ``changed``: also those that are newer than it."""
        files = self._files()
        times = {file: file.stat().st_mtime_ns for file in {*files.values()}} if changed else {}
        return [i for i in images if i not in files or (changed and _is_newer(i, times[files[i]]))]

    def in_order(self, images: Iterable[str]) -> Iterator[dict]:
        """Yield the rows of pictures, and of the frames of videos; none for a picture that was not opened."""
        files, current = self._files(), Path()
        rows_by_path: dict[str, dict] = {}
        for image in images:
            frames = (f"{image}#{number}" for number in count(1))
            for path in frames if is_video(image) else [image]:
                if path not in files:
                    break
                if files[path] != current:
                    current = files[path]
                    rows_by_path = {row["path"]: row for row in _rows(current)}
                yield rows_by_path[path]

    def remove(self) -> None:
        """Delete the rows, and the folder if it has no other file."""
        for file in (*self.folder.glob("part-*"), *self.folder.glob(".*.partial*"), self.folder / RECORD):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _files(self) -> dict[str, Path]:
        """Return the file with the newest row of each picture."""
        files = sorted(self.folder.glob(f"part-*.{self.kind}"), key=lambda file: file.stat().st_mtime_ns)
        return {path: file for file in files for path in _paths(file)}

    def add(self, row: dict) -> None:
        """Add the row of a picture; write a part if there are enough."""
        self.rows.append(row)
        if len(self.rows) >= ROWS or time.monotonic() - self._flushed >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that no part has yet."""
        if not self.rows:
            return
        # a task that a cluster repeats writes the same file
        paths = json.dumps([row["path"] for row in self.rows])  # a name need not be UTF-8
        name = hashlib.sha256(paths.encode()).hexdigest()[:32]
        file = self.folder / f"part-{name}.{self.kind}"
        if self.kind == "jsonl":
            write_text(file, "".join(f"{json.dumps(row)}\n" for row in self.rows))
        else:
            import pyarrow as pa
            import pyarrow.parquet

            with replacing(file) as partial:
                pa.parquet.write_table(pa.Table.from_pylist(self.rows, schema()), partial)
        self._flushed = time.monotonic()
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


def _is_newer(image: str, time: int) -> bool:
    with contextlib.suppress(OSError):  # an address
        status = os.stat(image)
        return max(status.st_mtime_ns, status.st_ctime_ns) > time  # a copy may keep its old time of change
    return False


def rows(folder: str | Path) -> Iterator[dict]:
    """Yield the rows of a folder, in no fixed order."""
    for file in sorted(Path(folder).glob("part-*")):
        yield from _rows(file)


def _rows(file: Path) -> Iterator[dict]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(file).to_pylist()
    else:
        with open(file, encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def write_results(
    parts: Parts,
    results: Results,
    draw: Callable[[Detections], None] | None = None,
    show: Callable[[Detections], None] | None = None,
) -> None:
    """Write the rows of results while others are detected.

    Pictures that cannot be opened have no row, so that the next call tries them again.

    Args:
        draw: writes the picture of a result before its row, in the thread of the rows.
        show: prints a result, in the calling thread.
    """

    def write(result: Detections) -> None:
        if draw:
            draw(result)
        parts.add(result.to_row())

    pending: deque[Future[None]] = deque()
    with parts, ThreadPoolExecutor(1) as pool:  # Ctrl-C waits for the results that have been shown
        for result in results:
            if show:
                show(result)
            pending.append(pool.submit(write, result))
            if len(pending) > WAITING:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
        for skipped in results.skipped:
            if skipped.is_opened:
                parts.add(skipped.to_row())
