"""tools/download_dataset.py, with a server on this machine in place of COCO's."""

import hashlib
import importlib.util
import io
import sys
import zipfile
from pathlib import Path

import pytest

from .zoo.conftest import undisturbed  # noqa: F401  a fixture
from .zoo.server import Served, serving

TOOL = Path(__file__).resolve().parents[1] / "tools" / "download_dataset.py"


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


VAL = zipped(val2017__1="image" * 100_000)
ANNOTATIONS = zipped(annotations__instances="{}")


@pytest.fixture
def tool(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("download_dataset", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments, fails=False):
        monkeypatch.setattr(sys, "argv", ["download_dataset", *map(str, arguments)])
        if fails:
            with pytest.raises(SystemExit) as stopped:
                module.main()
            return stopped.value.code
        module.main()
        return capsys.readouterr().out

    run.module = module
    return run


@pytest.fixture
def server(tool, monkeypatch):
    files = {"/zips/val2017.zip": VAL, "/annotations/annotations_trainval2017.zip": ANNOTATIONS}
    with serving(Served(files)) as served:
        monkeypatch.setenv("DCNZOO_MIRROR", f"{tool.module.HOST}={served.url}")
        known = tool.module.DATASETS["coco2017"]
        known["val2017"] = (known["val2017"][0], f"sha1:{hashlib.sha1(VAL).hexdigest()}")
        known["annotations"] = (known["annotations"][0], None)
        yield served


PARTS = ("--parts", "val2017", "annotations")


def test_download_and_unpack(tool, server, tmp_path):
    server.cuts = [200_000]
    arguments = (*PARTS, "--unzip", "--delete", "--save-dir", tmp_path / "coco")
    lines = tool(*arguments).splitlines()
    assert lines == [
        f"{tmp_path}/coco/val2017.zip",
        f"{tmp_path}/coco: 1 files",
        f"{tmp_path}/coco/annotations_trainval2017.zip (no checksum is known)",
        f"{tmp_path}/coco: 1 files",
    ]
    assert (tmp_path / "coco/val2017/1").read_text() == "image" * 100_000
    assert (tmp_path / "coco/annotations/instances").read_text() == "{}"
    assert sorted(p.name for p in (tmp_path / "coco").iterdir() if p.name[0] != ".") == [
        "annotations",
        "val2017",
    ]
    assert [wanted is None for _, wanted in server.requests] == [True, False, True], "resumed"
    assert "has val2017.zip already" in tool(*arguments)
    assert len(server.requests) == 3, "not downloaded again, though the archives are gone"


def test_archives_only(tool, server, tmp_path):
    tool(*PARTS, "--save-dir", tmp_path)
    assert (tmp_path / "val2017.zip").read_bytes() == VAL and not (tmp_path / "val2017").exists()


def test_wrong_checksum(tool, server, tmp_path):
    server.files["/zips/val2017.zip"] = ANNOTATIONS
    message = tool(*PARTS, "--unzip", "--save-dir", tmp_path, fails=True)
    assert "val2017.zip: expected sha1 " in message and "kept as " in message
    assert not (tmp_path / "val2017").exists()


def test_addresses(tool):
    lines = tool("--list").splitlines()
    assert [line.split()[0].rpartition("/")[2] for line in lines] == [
        "annotations_trainval2017.zip",
        "val2017.zip",
        "train2017.zip",
    ]
    lengths = {"sha1": 40, "md5": 32, "sha256": 64}
    for url, checksum in tool.module.DATASETS["coco2017"].values():
        assert url.startswith("http://images.cocodataset.org/") and url.endswith(".zip")
        algorithm, _, digits = (checksum or "md5:" + 32 * "0").partition(":")
        assert len(digits) == lengths[algorithm] and int(digits, 16) >= 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dataset-name", "voc"], "--dataset-name: expected one of coco2017, got voc"),
        (["--parts", "val2014"], "--parts: expected some of annotations, val2017, "),
        (["--delete"], "--delete: expected --unzip with it"),
    ],
)
def test_mistakes(tool, arguments, expected):
    assert tool(*arguments, fails=True).startswith(f"error: {expected}")
