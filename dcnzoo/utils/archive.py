"""Safe extraction of downloaded archives: no file outside the folder, and no incomplete file."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.filesize import decimal
from rich.progress import DownloadColumn

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.progress import make_progress


class ArchiveError(UserError):
    """The archive is damaged or unsafe, or the disk has too little space for its files."""


def unpack(archive: str | os.PathLike, folder: str | os.PathLike, console: Console | None = None) -> int:
    """Extracts a zip file. Existing files with the right size are skipped.

    Nothing is written if a member is a link or a device, or if its name leads out of ``folder``.

    Returns:
        The number of files in the archive.

    Raises:
        ArchiveError: one of these cases applies, the file is damaged or not a zip file, or the disk has too
            little space.
    """
    archive, folder = Path(archive), Path(folder)
    console = console or Console(stderr=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            for member in opened.infolist():
                _refuse_unless_harmless(archive, member)
            missing = [member for member in members if not _is_there(member, folder)]
            _refuse_unless_room(archive, missing, folder)
            _extract(opened, archive.name, missing, folder, console)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ArchiveError(f"{archive}: expected a zip file, found a damaged one: {error}") from error
    except FileNotFoundError:
        raise
    except OSError as error:  # for example a folder with the name of a file
        what = error.filename2 or error.filename or folder
        raise ArchiveError(f"{archive}: {what} cannot be written: {error.strerror}") from error
    except (RuntimeError, NotImplementedError) as error:  # a password, an unknown compression method
        raise ArchiveError(f"{archive}: expected a plain zip file: {error}") from error
    return len(members)


def _refuse_unless_harmless(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
        expected = "a name inside the folder"
    elif stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        expected = "a file, not a link"
    else:
        return
    raise ArchiveError(f"{archive}: {member.filename}: expected {expected}; no file was extracted")


def _is_there(member: zipfile.ZipInfo, folder: Path) -> bool:
    path = folder / member.filename
    return path.is_file() and path.stat().st_size == member.file_size


def _refuse_unless_room(archive: Path, members: list[zipfile.ZipInfo], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise ArchiveError(
            f"{archive}: {folder}: expected {decimal(needed)} of free space, got {decimal(free)}"
        )


def _extract(
    opened: zipfile.ZipFile, name: str, members: list[zipfile.ZipInfo], folder: Path, console: Console
) -> None:
    """Extract into a temporary folder, and move each file to its final path when it is complete."""
    bar = make_progress(console, DownloadColumn(), disable=not console.is_terminal)
    partial = folder / f".{name}.unpacking"
    try:
        with bar:
            task = bar.add_task(f"unpacking {name}", total=sum(m.file_size for m in members), note="")
            for member in members:
                extracted = Path(opened.extract(member, partial))
                target = folder / extracted.relative_to(partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                extracted.replace(target)
                bar.advance(task, member.file_size)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
