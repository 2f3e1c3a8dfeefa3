"""The rows of detections: files in a folder, which grow while pictures are detected."""

import contextlib
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import Timeout

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import Results
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.files import read_beside, replacing, write_text
from dcnzoo.utils.formats import is_video
from dcnzoo.utils.lock import locked_folder
from dcnzoo.utils.marks import RESULTS

ROWS = 256  # of a part
SECONDS = 60  # after which a part has fewer rows
WAITING = 4  # results in memory that are not written yet
COLUMNS = ("path", "width", "height", "boxes", "scores", "labels", "names", "masks", "error")
_START, _ERROR = '{"path": ', ', "error": "'


class _Part(NamedTuple):
    file: Path
    time: int  # of its last change, in nanoseconds
    failed: bool  # whether the row of a picture has an error


class Rows:
    """The rows in a folder, in files of some hundred that are written at once or not at all: parts.

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
        kind: Literal["jsonl", "parquet"] = "jsonl",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.kind = Path(folder), kind
        self.rows: list[dict] = []
        self._flushed = time.monotonic()
        if kind == "parquet":
            import pyarrow.parquet  # noqa: F401  before the work
        if settings is None:
            return
        record, expected = self.folder / RESULTS, _record(kind, settings)
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

    @contextlib.contextmanager
    def locked(self, name: str = "") -> Iterator[None]:
        """Context in which no other process adds to the rows. A folder without rows goes.

        Args:
            name: several processes may add to one folder under different names.

        Raises:
            UserError: another process adds to them.
        """
        try:
            with locked_folder(self.folder, f".lock{name}"):
                yield
        except Timeout:
            raise UserError("infer: another process runs the same command; wait until it ends") from None
        finally:
            with contextlib.suppress(OSError):  # it has files
                self.folder.rmdir()

    def missing(self, images: Iterable[str], changed: bool = False) -> list[str]:
        """Return the pictures that have no row; ``changed``: also those that are newer than it."""
        part_of = self._newest()
        parts = ((image, part_of(image)) for image in images)
        return [image for image, part in parts if not part or (changed and _is_newer(image, part.time))]

    def failures(self, images: Iterable[str]) -> int:
        """Return how many of the pictures have no row, or one with an error."""
        return sum(not part or part.failed for part in map(self._newest(), images))

    def in_order(self, images: Iterable[str], unopened: Collection[str] | None = None) -> Iterator[dict]:
        """Yield the rows of pictures, and of the frames of videos, with the paths as they are given.

        Args:
            unopened: the pictures that may have no row; None: all.

        Raises:
            UserError: another picture has none.
        """
        part_of, current = self._newest(), Path()
        rows_by_path: dict[str, dict] = {}
        for image in images:
            frames = (f"{image}#{number}" for number in count(1))
            for path in frames if is_video(image) else [image]:
                if not (part := part_of(path)):
                    if path == image and not (unopened is None or path in unopened):
                        raise UserError(f"{self.folder}: expected a row of {image}, found none")
                    break
                if part.file != current:
                    current, rows_by_path = part.file, {row["path"]: row for row in _rows(part.file)}
                yield {**rows_by_path[utf8(path)], "path": path}

    def remove(self) -> None:
        """Delete the rows."""
        for file in (*self.folder.glob("part-*"), *self.folder.glob(".*.partial*")):
            file.unlink(missing_ok=True)

    def _newest(self) -> Callable[[str], "_Part | None"]:
        """Return a function that returns the part with the newest row of a picture."""
        parts: dict[str, _Part] = {}
        files = ((file.stat().st_mtime_ns, file) for file in self.folder.glob(f"part-*.{self.kind}"))
        for time_ns, file in sorted(files):
            states = _Part(file, time_ns, False), _Part(file, time_ns, True)  # shared by millions of pictures
            for row in _rows(file, brief=True):
                parts[utf8(row["path"])] = states[row.get("error") is not None]
        return lambda image: parts.get(utf8(image))

    def add(self, row: Mapping) -> None:
        """Add the row of a picture; write a part if there are enough."""
        self.rows.append(full_row(row))
        if len(self.rows) >= ROWS or time.monotonic() - self._flushed >= SECONDS:
            self.flush()

    def flush(self, paths: Sequence[str] = ()) -> None:
        """Write the rows that no part has yet.

        Args:
            paths: of the task: if a cluster repeats it, it writes the same file (default: those of the rows).
        """
        if not self.rows:
            return
        text = json.dumps([*paths] or [row["path"] for row in self.rows])
        file = self.folder / f"part-{hashlib.sha256(text.encode()).hexdigest()[:32]}.{self.kind}"
        if self.kind == "jsonl":
            write_text(file, "".join(f"{json.dumps(row)}\n" for row in self.rows))
        else:
            import pyarrow.parquet

            with replacing(file) as partial:
                pyarrow.parquet.write_table(table(self.rows), partial)
        self._flushed = time.monotonic()
        self.rows = []


def _record(kind: str, settings: Mapping[str, Any]) -> dict:
    return json.loads(json.dumps({"format": kind, **settings}))


def continues(folder: Path, kind: str, settings: Mapping[str, Any]) -> bool:
    """Whether a folder has rows of these settings."""
    existing = read_beside(folder / RESULTS, json.loads)
    return existing == _record(kind, settings)


def shard_of(image: str, number: int) -> int:
    """Return to which of a number of shards a picture belongs, from 1 on.

    It depends on nothing but the path: a list with further pictures has the others in the same shards.
    """
    return int.from_bytes(hashlib.sha256(utf8(image).encode()).digest()[:8], "big") % number + 1


def full_row(row: Mapping) -> dict:
    """Return a row with all columns, of texts in UTF-8: names of files may have any bytes."""
    return {name: utf8(row.get(name)) for name in COLUMNS}


def table(rows: Iterable[Mapping]) -> Any:
    """Return the rows as a table of pyarrow."""
    import pyarrow as pa

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    types = (pa.string(), pa.int32(), pa.int32(), pa.list_(numbers), numbers, pa.list_(pa.int32()))
    schema = pa.schema(zip(COLUMNS, (*types, texts, texts, pa.string()), strict=True))
    return pa.Table.from_pylist([*map(full_row, rows)], schema)


def utf8(value: Any) -> Any:
    """Escape what UTF-8 does not have in a text or a list of texts."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return [*map(utf8, value)] if isinstance(value, list) and value and isinstance(value[0], str) else value


def _is_newer(image: str, time: int) -> bool:
    with contextlib.suppress(OSError):  # an address
        status = os.stat(image)
        return max(status.st_mtime_ns, status.st_ctime_ns) > time  # a copy may keep its old time of change
    return False


def rows(folder: str | Path) -> Iterator[dict]:
    """Yield the rows of a folder, in no fixed order."""
    for file in sorted(Path(folder).glob("part-*")):
        yield from _rows(file)


def _rows(file: Path, brief: bool = False) -> Iterator[dict]:
    """Yield the rows of a part; ``brief``: perhaps only path and error, which is faster."""
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            columns = ["path", "error"] if brief else None
            yield from pyarrow.parquet.read_table(file, columns=columns).to_pylist()
            return
        decoder = json.JSONDecoder()
        with open(file, encoding="utf-8") as lines:
            for line in filter(str.strip, lines):  # another program may have written it
                if brief and line.startswith(_START):
                    row = {"path": decoder.raw_decode(line, len(_START))[0], "error": _ERROR in line or None}
                else:
                    row = json.loads(line)
                if not isinstance(row["path"], str):
                    raise TypeError("its path is no text")
                yield row
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{file}: expected detections, got another file: {one_line(error)}") from error


def write_results(
    rows: Rows,
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
        rows.add(result.to_row())

    pending: deque[Future[None]] = deque()
    try:
        with ThreadPoolExecutor(1) as pool:  # Ctrl-C waits for the results that have been shown
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
                rows.add(skipped.to_row())
    except UserError:  # such as a full disk
        rows.rows = []
        raise
    finally:
        rows.flush()
