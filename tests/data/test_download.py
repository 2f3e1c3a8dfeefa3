"""``dcnzoo data download`` from a local server instead of COCO's, and unpacking."""

import hashlib
import io
import json
import random
import shutil
import stat
import zipfile

import pytest
from PIL import Image

from dcnzoo.data.download import COCO, HOST, SMALL, unpack
from dcnzoo.utils.errors import UserError
from tests.helpers.commands import error_of, run
from tests.helpers.server import Served, serving
from tests.zoo.conftest import undisturbed  # noqa: F401  a fixture


def voc_object(name, box):
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"


def voc_file(*objects, name="a.jpg"):
    return f"<annotation><filename>{name}</filename>{''.join(objects)}</annotation>"


def zipped(members, mode=0):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, content)
    return buffer.getvalue()


IMAGE = random.Random(0).randbytes(400_000)
VAL = zipped({"val2017/1": IMAGE})
ANNOTATIONS = zipped({"annotations/instances": "{}"})


@pytest.fixture
def server(monkeypatch):
    files = {"/zips/val2017.zip": VAL, "/annotations/annotations_trainval2017.zip": ANNOTATIONS}
    with serving(Served(files)) as served:
        monkeypatch.setenv("DCNZOO_MIRROR", f"{HOST}={served.url}")
        monkeypatch.setitem(COCO, "val2017", (COCO["val2017"][0], f"sha1:{hashlib.sha1(VAL).hexdigest()}"))
        monkeypatch.setitem(COCO, "annotations", (COCO["annotations"][0], None))
        yield served


PARTS = ("--parts", "val2017", "--parts", "annotations")


def test_download_and_unpack(server, tmp_path):
    arguments = (*PARTS, "--unzip", "--delete", "--out", tmp_path / "coco")
    lines = run("data", "download", *arguments).splitlines()
    assert lines[:2] == [f"{tmp_path}/coco/val2017.zip", f"{tmp_path}/coco: 1 file"]
    assert "no checksum" in lines[2]
    assert (tmp_path / "coco/val2017/1").read_bytes() == IMAGE
    assert (tmp_path / "coco/annotations/instances").read_text() == "{}"
    assert {p.name for p in (tmp_path / "coco").glob("[!.]*")} == {"annotations", "val2017"}
    assert "val2017.zip" in run("data", "download", "--list")
    assert "already has val2017.zip" in run("data", "download", *arguments)
    assert len(server.requests) == 2, "not downloaded again, though the archives are gone"
    (tmp_path / "coco/val2017/1").unlink()
    assert "already has annotations" in run("data", "download", *arguments)
    assert (tmp_path / "coco/val2017/1").read_bytes() == IMAGE


def test_wrong_checksum(server, tmp_path):
    server.files["/zips/val2017.zip"] = ANNOTATIONS
    message = error_of("data", "download", *PARTS, "--unzip", "--out", tmp_path)
    assert "val2017.zip: expected sha1:" in message
    assert not (tmp_path / "val2017").exists()


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


# the layout of the repositories, with an empty box and a box that leaves the image
BCCD = {
    "ImageSets/Main/train.txt": "a\n",
    "ImageSets/Main/val.txt": "b\n",
    "ImageSets/Main/test.txt": "a\nb\n",
    "Annotations/a.xml": voc_file(voc_object("RBC", (5, 7, 10, 20)), voc_object("WBC", (9, 9, 5, 9))),
    "Annotations/b.xml": voc_file(voc_object("Platelets", (31, 1, 60, 4)), name="b.jpg"),
    "JPEGImages/a.jpg": jpeg(),
    "JPEGImages/b.jpg": jpeg(),
}
FRUITS = {
    "trainval.json": json.dumps(
        {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (3, 5)],
            "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, i]} for i in (3, 5)],
            "categories": [{"id": 1, "name": "date"}],
        }
    ),
    "images/3.jpg": jpeg(),
    "images/5.jpg": jpeg(),
}


@pytest.mark.parametrize(
    ("name", "folder", "files", "boxes"),
    [
        (
            *("bccd", "BCCD_Dataset-1/BCCD", BCCD),
            {"train": [[4, 6, 6, 14]], "val": [[30, 0, 10, 4]], "test": [[4, 6, 6, 14], [30, 0, 10, 4]]},
        ),
        ("fruits_nuts", "demo-1/data", FRUITS, {"train": [[1, 2, 3, 3]], "val": [[1, 2, 3, 5]]}),
    ],
)
def test_small_data_sets(name, folder, files, boxes, tmp_path, monkeypatch):
    archive = zipped({f"{folder}/{file}": content for file, content in files.items()})
    with serving(Served({"/x.zip": archive})) as server:
        monkeypatch.setenv("DCNZOO_MIRROR", f"{SMALL[name][0]}={server.url}/x.zip")
        out = tmp_path / "data" / name
        assert "written" in run("data", "download", "--dataset-name", name, "--out", out)
        assert "already" in run("data", "download", "--dataset-name", name, "--out", out)
        assert len(server.requests) == 1
        for split, expected in boxes.items():
            content = json.loads((out / f"{split}.json").read_text())
            assert [each["bbox"] for each in content["annotations"]] == expected
            assert all((out / "images" / image["file_name"]).is_file() for image in content["images"])
        assert [path.name for path in out.parent.iterdir()] == [name], "nothing else is left"

        shutil.rmtree(out)
        server.files["/x.zip"] = zipped({"other/file": ""})
        message = error_of("data", "download", "--dataset-name", name, "--out", out)
        assert f"expected {name}, got" in message
        assert not out.exists()
        server.files["/x.zip"] = archive
        next(out.parent.glob("*.zip")).unlink()
        out.mkdir()
        (out / "mine").touch()
        assert "not empty" in error_of("data", "download", "--dataset-name", name, "--out", out)
        assert [path.name for path in out.iterdir()] == ["mine"]


# Unpacking


def unpacked(folder, content, out="out", force=False):
    """Unpack an archive; return the files of the folder."""
    (folder / "data.zip").write_bytes(content)
    assert len(unpack(folder / "data.zip", folder / out, force)) == content.count(b"PK\x01\x02")
    return files_in(folder / out)


def files_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_files_stay_in_the_folder_and_links_become_files(tmp_path):
    for number, name in enumerate(("../out.txt", "a/../../out.txt", "/out.txt", "//host/out.txt")):
        assert len(unpacked(tmp_path, zipped({name: b"x"}), f"deep/{number}")) == 1
    assert [p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*.txt")] == ["deep"] * 4
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        files = unpacked(tmp_path, zipped({"link": b"/etc/passwd"}, kind | 0o777))
        assert files == {"link": b"/etc/passwd"} and not (tmp_path / "out/link").is_symlink()


def test_unpacking_again_replaces_no_other_file(tmp_path):
    members = {"val2017/1.jpg": b"one" * 1000, "annotations/a.json": b"{}", "top": b""}
    for _ in range(2):
        assert unpacked(tmp_path, zipped(members)) == members
    (tmp_path / "out/annotations/a.json").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a\.json.*force=True"):
        unpacked(tmp_path, zipped(members))
    assert (tmp_path / "out/annotations/a.json").read_bytes() == b"mine"
    assert unpacked(tmp_path, zipped(members), force=True) == members


@pytest.mark.parametrize(("name", "earlier"), [("p", "p/q"), ("p/q", "p"), ("p" * 300, "q")])
def test_something_else_has_the_name(tmp_path, name, earlier):
    (tmp_path / "out" / earlier).parent.mkdir(parents=True)
    (tmp_path / "out" / earlier).touch()
    with pytest.raises(UserError, match=r"out/.*p"):
        unpacked(tmp_path, zipped({name: b"x"}))
    assert files_in(tmp_path / "out") == {earlier: b""}


def test_damaged_archive(tmp_path):
    damaged = bytearray(zipped({"a": b"first" * 50, "b": bytes(range(256)) * 50}))
    encrypted = bytearray(damaged)
    damaged[damaged.rindex(b"b\x00", 0, len(damaged) // 2) + 40] ^= 0xFF
    for start, flags in ((encrypted.index(b"PK\x03\x04"), 6), (encrypted.index(b"PK\x01\x02"), 8)):
        encrypted[start + flags] |= 1
    for content in (damaged, b"no zip", encrypted):
        with pytest.raises(UserError, match=f"^{tmp_path}/data.zip: expected a zip file"):
            unpacked(tmp_path, content)
        assert set(files_in(tmp_path / "out")) <= {"a"}, "no half file, nothing left lying about"
