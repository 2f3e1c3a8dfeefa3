"""Unpacking: no files outside the folder, and none that is incomplete."""

import zipfile

import pytest

from dcnzoo.data.download import unpack
from dcnzoo.utils.errors import UserError


@pytest.fixture
def make(tmp_path):
    def make(members):
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(zipfile.ZipInfo(name), content)
        return path

    return make


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "//host/out.txt"])
def test_names_that_lead_out(make, tmp_path, name):
    unpack(make({name: b"x"}), tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep" / "out").rglob("*.txt")] == ["out.txt"]
    assert len(list(tmp_path.rglob("*.txt"))) == 1


GOOD = {"val2017/": b"", "val2017/1.jpg": b"one" * 1000, "annotations/a.json": b"{}", "top": b""}


def test_unpack(make, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        assert unpack(make(GOOD), out) == 3
        assert files(out) == {name: content for name, content in GOOD.items() if not name.endswith("/")}
        (out / "val2017/1.jpg").write_bytes(b"half")  # of an interrupted call


@pytest.mark.parametrize(("name", "there"), [("p", "p/q"), ("p/q", "p"), ("p" * 300, "q")])
def test_something_else_is_there(make, tmp_path, name, there):
    (tmp_path / "out" / there).parent.mkdir(parents=True)
    (tmp_path / "out" / there).touch()
    with pytest.raises(UserError, match="out/p"):
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
        with pytest.raises(UserError, match=f"^{path}: expected a zip file"):
            unpack(path, tmp_path / f"{number}")
        assert set(files(tmp_path / f"{number}")) <= {"a"}, "no half file, nothing left lying about"
