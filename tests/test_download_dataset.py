"""``dcnzoo data download``, with a local server instead of COCO's."""

import hashlib
import io
import zipfile

import pytest

from dcnzoo.data.download import DATASETS, HOST

from .commands import error_of, run
from .zoo.conftest import undisturbed  # noqa: F401  a fixture
from .zoo.server import Served, serving


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


VAL = zipped(val2017__1="image" * 100_000)
ANNOTATIONS = zipped(annotations__instances="{}")


@pytest.fixture
def server(monkeypatch):
    files = {"/zips/val2017.zip": VAL, "/annotations/annotations_trainval2017.zip": ANNOTATIONS}
    with serving(Served(files)) as served:
        monkeypatch.setenv("DCNZOO_MIRROR", f"{HOST}={served.url}")
        known = DATASETS["coco2017"]
        monkeypatch.setitem(known, "val2017", (known["val2017"][0], f"sha1:{hashlib.sha1(VAL).hexdigest()}"))
        monkeypatch.setitem(known, "annotations", (known["annotations"][0], None))
        yield served


PARTS = ("--parts", "val2017", "annotations")


def test_download_and_unpack(server, tmp_path):
    server.cuts = [200_000]
    arguments = (*PARTS, "--unzip", "--delete", "--save-dir", tmp_path / "coco")
    lines = run("data", "download", *arguments).splitlines()
    assert lines[:2] == [f"{tmp_path}/coco/val2017.zip", f"{tmp_path}/coco: 1 files"]
    assert "no checksum" in lines[2]
    assert (tmp_path / "coco/val2017/1").read_text() == "image" * 100_000
    assert (tmp_path / "coco/annotations/instances").read_text() == "{}"
    assert {p.name for p in (tmp_path / "coco").glob("[!.]*")} == {"annotations", "val2017"}
    assert [wanted is None for _, wanted in server.requests] == [True, False, True], "resumed"
    assert "has val2017.zip already" in run("data", "download", *arguments)
    assert len(server.requests) == 3, "not downloaded again, though the archives are gone"


def test_wrong_checksum(server, tmp_path):
    server.files["/zips/val2017.zip"] = ANNOTATIONS
    message = error_of("data", "download", *PARTS, "--unzip", "--out", tmp_path)
    assert "val2017.zip: expected sha1 " in message
    assert not (tmp_path / "val2017").exists()


@pytest.mark.parametrize("arguments", [["--dataset-name", "voc"], ["--parts", "val2014"], ["--delete"]])
def test_wrong_options(arguments):
    assert "train2017.zip" in run("data", "download", "--list")
    assert arguments[0] in error_of("data", "download", *arguments, status=2)
