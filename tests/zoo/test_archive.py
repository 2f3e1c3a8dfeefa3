"""Unpacking: no files outside the folder, no links, all files or none."""

import stat
import zipfile

import pytest

from dcnzoo.utils import archive
from dcnzoo.utils.archive import ArchiveError, unpack


@pytest.mark.parametrize(
    "name", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:\\out.txt", "\\\\host\\x"]
)
def test_names_that_lead_out(make, tmp_path, name):
    path = make({"good.txt": b"x", name: b"escaped"})
    with pytest.raises(ArchiveError, match=f"^{path}: .*no file was extracted$"):
        unpack(path, tmp_path / "out")
    assert files(tmp_path) == {"data.zip": path.read_bytes()}
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        with pytest.raises(ArchiveError, match=r"link: .*no file was extracted"):
            unpack(make({"link": b"/etc"}, mode=kind | 0o777), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def make(tmp_path):
    def make(members, mode=None):
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                info = zipfile.ZipInfo(name)
                if mode is not None:
                    info.external_attr = mode << 16
                file.writestr(info, content)
        return path

    return make


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


GOOD = {"val2017/": b"", "val2017/1.jpg": b"one" * 1000, "annotations/a.json": b"{}", "top": b""}


def test_unpack(make, tmp_path):
    out = tmp_path / "out"
    assert unpack(make(GOOD), out) == 3
    assert files(out) == {name: content for name, content in GOOD.items() if not name.endswith("/")}


def test_what_is_there_is_kept_or_mended(make, tmp_path):
    out = tmp_path / "out"
    unpack(make(GOOD), out)
    (out / "top").write_bytes(b"half")
    before = (out / "val2017/1.jpg").stat().st_mtime_ns
    assert unpack(make(GOOD), out) == 3
    assert (out / "top").read_bytes() == b""
    assert (out / "val2017/1.jpg").stat().st_mtime_ns == before


@pytest.mark.parametrize(("name", "there"), [("p", "p/q"), ("p/q", "p"), ("p" * 300, "q")])
def test_something_else_is_there(make, tmp_path, name, there):
    (tmp_path / "out" / there).parent.mkdir(parents=True)
    (tmp_path / "out" / there).touch()
    with pytest.raises(ArchiveError, match=r"out/p.* cannot be written"):
        unpack(make({name: b"x"}), tmp_path / "out")
    assert files(tmp_path / "out") == {there: b""}


def test_damaged(make, tmp_path):
    path = make({"a": b"first" * 50, "b": bytes(range(256)) * 50})
    content = bytearray(path.read_bytes())
    encrypted = bytearray(content)
    content[content.rindex(b"b\x00", 0, len(content) // 2) + 40] ^= 0xFF
    for start, flags in ((encrypted.index(b"PK\x03\x04"), 6), (encrypted.index(b"PK\x01\x02"), 8)):
        encrypted[start + flags] |= 1
    for number, written in enumerate((content, b"no zip", encrypted)):
        path.write_bytes(written)
        with pytest.raises(ArchiveError, match="expected a zip file" if number < 2 else str(path)):
            unpack(path, tmp_path / f"{number}")
        assert set(files(tmp_path / f"{number}")) <= {"a"}, "no half file, nothing left lying about"


def test_no_room(make, tmp_path, monkeypatch):
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2000}))
    with pytest.raises(ArchiveError, match=r"expected 3\.0 kB of free space, got 2\.0 kB$"):
        unpack(make(GOOD), tmp_path / "out")
