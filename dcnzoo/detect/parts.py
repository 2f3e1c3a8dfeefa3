"""Detections of many pictures as a folder of files, which grows while they are detected."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import Results
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.files import is_video, replacing, write_text

ROWS = 256  # of a part
SECONDS = 60  # after which a part has fewer rows
WAITING = 4  # results in memory that are not written yet
RECORD = "results.json"  # in the folder: the model and the settings of all rows
_START, _ERROR = '{"path": ', ', "error": "'


class _Part(NamedTuple):
    file: Path
    time: int  # of its last change, in nanoseconds
    failed: bool  # whether the row of a picture has an error


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

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which no other process uses the folder. Folders that it has made and that stay empty go.

        Raises:
            UserError: another process uses it.
        """
        lock = FileLock(self.folder / ".lock")
        made = [parent for parent in self.folder.parents if not parent.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError("infer: another process runs the same command; wait until it ends") from None
        except (OSError, NotImplementedError):  # not all file systems have locks
            pass
        try:
            yield
        finally:
            if not any(self.folder.glob("part-*")):
                shutil.rmtree(self.folder, ignore_errors=True)
            lock.release()
            for parent in made:
                with contextlib.suppress(OSError):  # it has files
                    parent.rmdir()

    def missing(self, images: Iterable[str], changed: bool = False) -> list[str]:
        """Return the pictures that have no row; ``changed``: also those that are newer than it."""
        part_of = self._newest()
        parts = ((image, part_of(image)) for image in images)
        return [image for image, part in parts if not part or (changed and _is_newer(image, part.time))]

    def failures(self, images: Iterable[str]) -> int:
        """Return how many of the pictures have no row, or one with an error."""
        return sum(not part or part.failed for part in map(self._newest(), images))

    def in_order(self, images: Iterable[str], unopened: Collection[str] | None = None) -> Iterator[dict]:
        """Yield the rows of pictures, and of the frames of videos.

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
                yield rows_by_path[self._path(path)]

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
            parts |= {row["path"]: states[row.get("error") is not None] for row in _rows(file, brief=True)}
        return lambda image: parts.get(self._path(image))

    def _path(self, image: str) -> str:
        """Return the path of a picture as it is in its row."""
        return _utf8(image) if self.kind == "parquet" else image

    def add(self, row: dict) -> None:
        """Add the row of a picture; write a part if there are enough."""
        self.rows.append(row)
        if len(self.rows) >= ROWS or time.monotonic() - self._flushed >= SECONDS:
            self.flush()

    def flush(self, paths: Sequence[str] = ()) -> None:
        """Write the rows that no part has yet.

        Args:
            paths: of the task: if a cluster repeats it, it writes the same file (default: those of the rows).
        """
        if not self.rows:
            return
        text = json.dumps([*paths] or [row["path"] for row in self.rows])  # a name need not be UTF-8
        file = self.folder / f"part-{hashlib.sha256(text.encode()).hexdigest()[:32]}.{self.kind}"
        if self.kind == "jsonl":
            write_text(file, "".join(f"{json.dumps(row)}\n" for row in self.rows))
        else:
            import pyarrow.parquet

            with replacing(file) as partial:
                pyarrow.parquet.write_table(table(self.rows), partial)
        self._flushed = time.monotonic()
        self.rows = []


def table(rows: Iterable[Mapping]) -> Any:
    """Return the rows as a table of pyarrow, whose texts are UTF-8."""
    import pyarrow as pa

    texts = [{key: _utf8(value) for key, value in row.items()} for row in rows]
    return pa.Table.from_pylist(texts, schema())


def _utf8(value: Any) -> Any:
    """Escape what UTF-8 does not have in a text or a list of texts: names of files may have any bytes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return [*map(_utf8, value)] if isinstance(value, list) and value and isinstance(value[0], str) else value


def schema() -> Any:
    import pyarrow as pa

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    columns = {"path": pa.string(), "width": pa.int32(), "height": pa.int32(), "boxes": pa.list_(numbers)}
    columns |= {"scores": numbers, "labels": pa.list_(pa.int32()), "names": texts, "masks": texts}
    return pa.schema({**columns, "error": pa.string()})


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
