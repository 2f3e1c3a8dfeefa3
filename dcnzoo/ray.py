"""Detection on a Ray cluster: :class:`Detect`, for programs with Ray Data, and ``dcnzoo infer --ray``."""

import socket
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ray
import ray.data

import dcnzoo
from dcnzoo.detect.rows import Rows, full_row, table
from dcnzoo.utils.errors import UserError

BATCH = 64  # pictures of a task


class Detect:
    """Detect the objects of pictures in ``map_batches``; each actor loads the model once::

        pictures = ray.data.from_items([{"path": path} for path in paths])
        rows = pictures.map_batches(Detect, fn_constructor_args=["model.onnx"], concurrency=4, num_gpus=1)

    A batch has the column ``path``. The result is a ``pyarrow.Table`` with the columns of ``dcnzoo infer
    --format parquet``. It never raises for a picture: ``error`` says why it cannot be read.

    Args:
        model, loading: see :func:`dcnzoo.load`.
        options: of the call of the detector, such as ``batch_size``.
    """

    def __init__(self, model: str, options: Mapping[str, Any] | None = None, **loading: Any) -> None:
        self.detector, self.options = dcnzoo.load(model, **loading), dict(options or {})

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> Any:
        return table(self._rows(batch))

    def _rows(self, batch: Mapping[str, Sequence[str]], unopened: bool = True) -> list[dict]:
        results = self.detector([str(path) for path in batch["path"]], **self.options)
        rows = [result.to_row() for result in results]
        return rows + [each.to_row() for each in results.skipped if unopened or each.is_opened]


class _Write(Detect):
    """Write the rows of each batch to one part, which replaces the one of a worker that was killed.

    Writes nothing if the worker has another model under this name; the result then names the machine.
    """

    def __init__(
        self,
        folder: str,
        kind: Literal["jsonl", "parquet"],
        checksum: str,
        *arguments: Any,
        **loading: Any,
    ) -> None:
        super().__init__(*arguments, **loading)
        self.folder, self.kind = folder, kind
        self.other = [] if self.detector.checksum() == checksum else [socket.gethostname()]

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> Any:
        if not self.other:
            rows = Rows(self.folder, self.kind)
            rows.rows = [*map(full_row, self._rows(batch, unopened=False))]
            rows.flush([str(path) for path in batch["path"]])
        return {"other": self.other}


def detect_on_cluster(
    address: str,
    rows: Rows,
    model: str,
    images: Sequence[str],
    options: Mapping[str, Any],
    checksum: str,
    **loading: Any,
) -> None:
    """Detect the objects in the pictures that have no row yet, on a cluster.

    Model, pictures and the folder of the rows must have the same path on all machines.

    Args:
        checksum: of the model.

    Raises:
        UserError: the model of a worker has another one.
    """
    if not (paths := rows.missing(images)):
        return
    ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    actors = gpus or int(ray.cluster_resources()["CPU"])
    blocks = -(-len(paths) // BATCH)
    tasks = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=blocks).map_batches(
        _Write,
        batch_size=BATCH,
        concurrency=(1, max(1, min(actors, blocks))),
        num_gpus=1 if gpus else None,
        fn_constructor_args=[str(rows.folder.absolute()), rows.kind, checksum, model, options],
        fn_constructor_kwargs=loading,
    )
    for row in tasks.iter_rows():
        raise UserError(f"model: {row['other']} has another {model}; copy it to all machines, and repeat")
