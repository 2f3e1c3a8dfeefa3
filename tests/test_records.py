"""Rows of results are written completely or not at all, and none is lost."""

import json

import pytest
import torch

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.jsonl import append_row, machine, versions


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_rows_are_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "rows.jsonl"
    append_row(path, {"a": 1, "text": "zwei\nZeilen – ±"})
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(UserError, match=r"rows\.jsonl cannot be written: disk full"):
            append_row(path, {"a": 2})
    append_row(path, {"a": 3})
    assert rows(path) == [{"a": 1, "text": "zwei\nZeilen – ±"}, {"a": 3}]
    assert not list(path.parent.glob(".*partial"))


def test_what_a_row_says():
    assert versions()["torch"] == torch.__version__ and "mmdet" in versions()
    assert machine("cpu").endswith(f", {torch.get_num_threads()} threads")
