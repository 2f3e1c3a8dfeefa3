"""Data sets to download: addresses, checksums, and the preparation of small data sets."""

import filecmp
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import partial_folder, read_beside, replacing, write_text
from dcnzoo.utils.text import counted

HOST = "http://images.cocodataset.org"
# part of COCO → URL and checksum (None if unknown)
COCO = {
    "annotations": (
        f"{HOST}/annotations/annotations_trainval2017.zip",
        "sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3",
    ),
    "val2017": (f"{HOST}/zips/val2017.zip", "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41"),
    "train2017": (f"{HOST}/zips/train2017.zip", "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5"),
    "test2017": (f"{HOST}/zips/test2017.zip", "md5:77ad2c53ac5d0aea611d422c0938fb35"),
    "image_info_test2017": (f"{HOST}/annotations/image_info_test2017.zip", None),
}
# the parts that MMDetection's configs for detection and instance segmentation use
USUAL = ("annotations", "val2017", "train2017")


def _bccd(source: Path, out: Path) -> None:
    """Blood cells, in Pascal VOC's format. Some boxes extend beyond their image or are empty."""
    from dcnzoo.data.reading import read

    data = read(source / "BCCD", classes=("WBC", "RBC", "Platelets"), clip=True, skip_invalid=True)
    for name, pictures in data.splits.items():
        data.part(name, pictures).write(out / f"{name}.json")
    shutil.copytree(source / "BCCD" / "JPEGImages", out / "images")


def _fruits_nuts(source: Path, out: Path) -> None:
    """Dates, figs and hazelnuts, in one COCO file. The five images for validation are dcnzoo's choice."""
    from dcnzoo.data.reading import read

    validation = {"5.jpg", "7.jpg", "8.jpg", "13.jpg", "15.jpg"}
    data = read(source / "data" / "trainval.json")
    for name in ("train", "val"):
        own = [picture for picture in data if (picture.file.name in validation) == (name == "val")]
        data.part(name, own).write(out / f"{name}.json")
    shutil.copytree(source / "data" / "images", out / "images")


# Data set → URL of its archive, and a function of two folders: it reads the unpacked archive from the first
# and writes train.json, val.json, images/ and, for bccd, test.json to the second.
SMALL: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "bccd": (
        "https://github.com/Shenggan/BCCD_Dataset/archive/135df0221baca7b51c18190791522ddeba8fddbf.zip",
        _bccd,
    ),
    "fruits_nuts": (
        "https://github.com/Tony607/mmdetection_instance_segmentation_demo/archive/"
        "e0696e5c744d6df6b3cbdc2045973e789b0b300e.zip",
        _fruits_nuts,
    ),
}


def unpack(archive: Path, folder: str | Path, force: bool = False) -> list[str]:
    """Extract a zip file; return the names of its files. ``zipfile`` keeps all names inside ``folder``.

    Args:
        force: replace files whose content differs.

    Raises:
        UserError: the archive is damaged or not a zip file, or a file differs or cannot be written.
    """
    from dcnzoo.utils.progress import track

    folder, names = Path(folder), list[str]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive) as opened, partial_folder(folder) as partial:
            members = [member for member in opened.infolist() if not member.is_dir()]
            for member in track(members, f"unpacking {archive.name}"):
                extracted = Path(opened.extract(member, partial))
                name = str(extracted.relative_to(partial))
                target = folder / name
                if target.is_file() and not (force or filecmp.cmp(target, extracted, shallow=False)):
                    raise UserError(
                        f"{target}: expected no file, or that of {archive}; force=True replaces it"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                extracted.replace(target)
                names.append(name)
    # RuntimeError: a password is needed; NotImplementedError: an unknown compression method
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{archive}: expected a zip file to unpack to {folder}: {error}") from error
    return names


def download_small(name: str, out: Path) -> str:
    """Download a small data set and prepare it for training, unless it is there; return a line about it.

    Raises:
        UserError: the archive does not have the expected content, or ``out`` contains other files.
    """
    from dcnzoo.utils.fetch import fetch

    is_complete = (out / "train.json").is_file() and (out / "val.json").is_file()
    if not is_complete:
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"out: expected a new folder, got {out}, which is not empty")
        archive = fetch(SMALL[name][0], out.parent)
        _prepare(name, archive, out)
        archive.unlink()
    files = ", ".join(sorted(file.name for file in out.glob("*.json")))
    return f"{'already has' if is_complete else 'written'}: {out}: images, {files}"


def download_part(part: str, out: Path, unzip: bool, delete: bool, force: bool) -> Iterator[str]:
    """Download an archive of COCO and unpack it, unless its files are there; yield lines about it.

    Args:
        part: a key of :data:`COCO`.
        delete: delete the archive after unpacking.
        force: replace files whose content differs.
    """
    from dcnzoo.utils.fetch import fetch

    url, checksum = COCO[part]
    # lists the files of an unpacked archive; the archive itself may have been deleted
    unpacked = out / f".{Path(url).name}.unpacked"
    names = (read_beside(unpacked) or "").splitlines()
    if unzip and names and all((out / name).is_file() for name in names):
        yield f"{out}: already has {Path(url).name}"
        return
    archive = fetch(url, out, checksum=checksum)
    yield str(archive) if checksum else f"{archive} (no checksum is known)"
    if unzip:
        names = unpack(archive, out, force)
        yield f"{out}: {counted(len(names), 'files')}"
        write_text(unpacked, "\n".join(names))
    if delete:
        archive.unlink()


def _prepare(name: str, archive: Path, out: Path) -> None:
    """Unpack the archive of a small data set and write train.json, val.json and images/ to ``out``."""
    with tempfile.TemporaryDirectory() as folder, replacing(out) as partial:
        unpack(archive, folder)
        partial.mkdir()
        try:  # the archive has one folder, named after the repository
            (source,) = Path(folder).iterdir()
            SMALL[name][1](source, partial)
        except (UserError, OSError, ValueError) as error:
            raise UserError(
                f"{archive}: expected {name}, got {error}; delete the file and try again"
            ) from error
