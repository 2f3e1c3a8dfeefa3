"""Detection on a Ray cluster: :class:`Detect`, for programs with Ray Data, and ``dcnzoo infer --ray``."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ray
import ray.data

import dcnzoo
from dcnzoo.detect.parts import Parts, table

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
    """Write the rows of each batch to one part, which replaces the one of a worker that was killed."""

    def __init__(
        self, folder: str, kind: Literal["jsonl", "parquet"], *arguments: Any, **loading: Any
    ) -> None:
        super().__init__(*arguments, **loading)
        self.folder, self.kind = folder, kind

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> Any:
        parts = Parts(self.folder, self.kind)
        parts.rows = self._rows(batch, unopened=False)
        parts.flush([str(path) for path in batch["path"]])
        return {"path": []}


def detect_on_cluster(
    address: str, parts: Parts, model: str, images: Sequence[str], options: Mapping[str, Any], **loading: Any
) -> None:
    """Detect the objects in the pictures that have no row yet, on a cluster.

    Model, pictures and the folder of the parts must have the same path on all machines.
    """
    if not (paths := parts.missing(images)):
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
        fn_constructor_args=[str(parts.folder.absolute()), parts.kind, model, options],
        fn_constructor_kwargs=loading,
    )
    for _ in tasks.iter_rows():
        pass
