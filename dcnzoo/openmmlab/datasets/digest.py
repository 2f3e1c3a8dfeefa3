"""A checksum of what a data set has read, for processes that have their own copies of the data."""

import hashlib
import re
from typing import Any

from dcnzoo.utils.files import add_file

# parts of texts that may differ between processes: folders, and addresses in memory
_OF_A_PROCESS = re.compile(r"(?<=['\"])[^'\"]*/| at 0x[0-9a-f]+")
_PLAIN = str | int | float | list | tuple | dict


def data_digest(dataset: Any) -> str:
    """Return a checksum of the names and annotations of all pictures, without their folders.

    The content of the pictures is not read. A data set without ``get_data_info`` has no annotations.
    """
    digest = hashlib.sha256()
    for each in _read_by(dataset):
        digest.update(str(len(each)).encode())
        if getattr(each, "_content", None) is not None:  # a CocoDataset: its annotations are not parsed yet
            add_file(digest, each.ann_file)
            continue
        for index in range(len(each)) if hasattr(each, "get_data_info") else ():
            info = each.get_data_info(index)
            text = repr({key: value for key, value in info.items() if isinstance(value, _PLAIN)})
            digest.update(_OF_A_PROCESS.sub("", text).encode(errors="surrogatepass"))
    return digest.hexdigest()[:8]


def _read_by(dataset: Any) -> list[Any]:
    """Return the data sets that read files, inside wrappers."""
    inner = getattr(dataset, "datasets", None) or getattr(dataset, "dataset", None)
    if inner is None:
        return [dataset]
    inner = inner if isinstance(inner, list | tuple) else [inner]
    return [each for part in inner for each in _read_by(part)]
