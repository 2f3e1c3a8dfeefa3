"""Pictures and annotations in archives and object stores: a file back end of mmengine over fsspec."""

import contextlib
import errno
import os
import posixpath
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from fsspec import AbstractFileSystem, available_protocols, url_to_fs
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.fileio.backends import prefix_to_backends

_OF_MMENGINE = {*prefix_to_backends}
if find_spec("petrel_client") is None:  # with which mmengine reads s3://
    _OF_MMENGINE.discard("s3")


@register_backend("fsspec", force=True, prefixes=[*({*available_protocols()} - _OF_MMENGINE)])
class FsspecBackend(BaseStorageBackend):
    """Files of a file system of fsspec, such as ``zip://``, ``memory://`` or, with s3fs, ``s3://``.

    Args:
        options: of the file system, such as ``fo="photos.zip"`` for ``zip://``.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options

    def _find(self, path: Any) -> tuple[AbstractFileSystem, str]:
        # fsspec stores one for each process and thread: forked workers must not share an open file
        return url_to_fs(str(path), **self._options)

    def get(self, filepath: Any) -> bytes:
        system, path = self._find(filepath)
        try:
            return system.cat_file(path)
        except FileNotFoundError:  # without the whole path
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(filepath)) from None

    def get_text(self, filepath: Any, encoding: str = "utf-8") -> str:
        return self.get(filepath).decode(encoding)

    def exists(self, filepath: Any) -> bool:
        system, path = self._find(filepath)
        return system.exists(path)

    def join_path(self, filepath: Any, *filepaths: str) -> str:
        return posixpath.join(str(filepath), *filepaths)

    @contextlib.contextmanager
    def get_local_path(self, filepath: Any) -> Iterator[str]:
        """Context with the path of a temporary copy."""
        with tempfile.TemporaryDirectory() as folder:
            copy = posixpath.join(folder, posixpath.basename(str(filepath)))
            with open(copy, "wb") as file:
                file.write(self.get(filepath))
            yield copy
