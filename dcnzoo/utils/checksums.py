"""Checksums of files of any size."""

import hashlib
import os


def file_digest(path: str | os.PathLike, algorithm: str = "sha256") -> "hashlib._Hash":
    """Return the checksum of a file of any size."""
    digest = hashlib.new(algorithm)
    add_file(digest, path)
    return digest


def add_file(digest: "hashlib._Hash", path: str | os.PathLike) -> None:
    """Add the content of a file to a checksum; at most a megabyte of it is in memory."""
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
