"""The commands of ``dcnzoo zoo``."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from dcnzoo import zoo
from tests.helpers import commands
from tests.helpers.server import Served, serving
from tests.zoo.conftest import entry

NAME = "faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco"


def run(*arguments, status=0):
    return commands.run("zoo", *arguments, status=status)


def json_of(*arguments):
    return json.JSONDecoder().raw_decode(run(*arguments, "--json"))[0]  # the number of models follows


def test_list():
    *lines, total = run("list").splitlines()
    assert lines[0].split("  ")[0] == "name" and len(lines) - 1 >= len(zoo.models()) > 580
    assert total == f"{len(zoo.models())} models"
    (row,) = [line for line in lines if line.startswith(NAME + " ")]
    expected = [NAME, "41.4", "–", "DCNv2 (backbone)", "yes", "published"]
    assert re.split(r"  +", row) == expected


def test_list_dcn():
    models = json_of("list", "--dcn")
    assert len(models) >= 60
    assert all(model["deformable"] for model in models)
    assert {"DCN", "DCNv2", "SAC"} <= {op for model in models for op in model["deformable"].values()}
    folders = {model["id"].partition("::")[2].partition("/")[0] for model in models}
    assert {"dcn", "dcnv2", "detectors", "vfnet", "tood", "reppoints", "centernet"} <= folders
    assert not folders & {"deformable_detr", "mask2former"}, "attention is not convolution"


def test_info():
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in run("info", NAME).splitlines())
    assert rows["id"] == f"dcnzoo::dcnv2/{NAME}.py" and rows["weights"].endswith("-d099253b.pth")
    assert "published (MMDetection)" in rows["results"]
    known = json_of("info", NAME)
    assert known["results"][0]["metrics"] == {"box AP": 41.4} and known["deformable"] == {"backbone": "DCNv2"}


@pytest.fixture
def server(package):
    contents = [b"first" * 1000, b"second" * 1000]
    files = {f"/net{i}-{hashlib.sha256(c).hexdigest()[:8]}.pth": c for i, c in enumerate(contents)}
    with serving(Served(files)) as served:
        first, second = files
        paths = {"net0": first, "net1": second, "lost": "/lost-12345678.pth", "plain": "/plain.pth"}
        package(*(entry(n, Published="a test", Weights=served.url + path) for n, path in paths.items()))
        yield served


def test_download(server, tmp_path):
    printed = run("download", "net0", "net1", "--out", tmp_path).split()
    assert printed == [f"{tmp_path}{path}" for path in server.files]
    assert [Path(path).read_bytes() for path in printed] == list(server.files.values())


def test_download_without_checksum(server, tmp_path):
    server.files["/plain.pth"] = b"x"
    printed = run("download", "plain", "--out", tmp_path)
    assert printed.startswith(f"{tmp_path}/plain.pth\nplain.pth: not checked")


def test_download_that_fails(server, tmp_path):
    before, line = run("download", "net0", "lost", "--out", tmp_path, status=1).splitlines()
    assert line.startswith(f"error: {server.url}/lost-12345678.pth: ") and "404" in line
    assert before == f"{tmp_path}{next(iter(server.files))}", "downloaded before the error"
    server.requests.clear()
    run("download", "net1", "nett1", "--out", tmp_path, status=1)
    assert server.requests == [], "nothing before all names are known"
