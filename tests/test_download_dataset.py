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
    assert lines[:2] == [f"{tmp_path}/coco/val2017.zip", f"{tmp_path}/coco: 1 files"]
    assert "no checksum" in lines[2]
    assert (tmp_path / "coco/val2017/1").read_text() == "image" * 100_000
    assert (tmp_path / "coco/annotations/instances").read_text() == "{}"
    assert {p.name for p in (tmp_path / "coco").glob("[!.]*")} == {"annotations", "val2017"}
    assert [wanted is None for _, wanted in server.requests] == [True, False, True], "resumed"
    assert "has val2017.zip already" in tool(*arguments)
    assert len(server.requests) == 3, "not downloaded again, though the archives are gone"


def test_wrong_checksum(tool, server, tmp_path):
    server.files["/zips/val2017.zip"] = ANNOTATIONS
    message = tool(*PARTS, "--unzip", "--save-dir", tmp_path, fails=True)
    assert "val2017.zip: expected sha1 " in message
    assert not (tmp_path / "val2017").exists()


def test_addresses(tool):
    names = [line.split()[0].rpartition("/")[2] for line in tool("--list").splitlines()]
    assert names == ["annotations_trainval2017.zip", "val2017.zip", "train2017.zip"]
    for url, checksum in tool.module.DATASETS["coco2017"].values():
        assert url.startswith("http://images.cocodataset.org/") and url.endswith(".zip")
        assert checksum is None or len(checksum.partition(":")[2]) in (32, 40, 64)


@pytest.mark.parametrize("arguments", ["--dataset-name voc", "--parts val2014", "--delete"])
def test_mistakes(tool, arguments):
    assert tool(*arguments.split(), fails=True).startswith(f"error: {arguments.split()[0]}: ")
