"""The weights shipped with dcnzoo reproduce the figures in the zoo."""

import json

import pytest

from dcnzoo import zoo

from ..commands import run

SHIPPED = [model.name for model in zoo.models() if model.weights and "://" not in model.weights[0]]


def test_there_are_some():
    assert {"mask-rcnn_r14_fpn_8e_shapes", "mask-rcnn_r14-mdconv_fpn_8e_shapes"} <= set(SHIPPED)
    assert all(zoo.find(name).measured for name in SHIPPED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder for generated images, shared by all tests."""
    return tmp_path_factory.mktemp("measured")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * ("-mdconv_" not in name))
        for name in SHIPPED
        if name.endswith("shapes")  # the others need data to download
    ],
)
def test_reproduces(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DCNZOO_OFFLINE", "1")
    run("reproduce", name, "--out", tmp_path / "rows.jsonl")
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert set(row["difference"]) == {"box AP", "mask AP"}
    assert row["difference"] == pytest.approx(dict.fromkeys(row["difference"], 0), abs=0.051)
