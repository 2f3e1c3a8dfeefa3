"""The table of docs/mmcv_ops.md. To write it: python -m tests.test_docs_mmcv_ops"""

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dcnzoo.compat.mmcv import _ext

PAGE = Path(__file__).resolve().parents[1] / "docs/mmcv_ops.md"
HEADER = "| functions of `mmcv._ext` | asked for by | |\n|---|---|---|\n"

GPU_ONLY = (
    *("knn_forward", "furthest_point_sampling_forward", "carafe_naive_backward"),
    *("points_in_boxes_part_forward", "points_in_boxes_all_forward"),
)


def asked_for():
    for path in sorted((Path(find_spec("mmcv").origin).parent / "ops").glob("*.py")):
        for names in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.DOTALL):
            yield path.stem, re.findall(r"'(\w+)'", names)


def status(name):
    function = getattr(_ext, name)
    if hasattr(function, "instead"):
        return f"– {function.instead}"
    if ".plain." not in function.__module__:
        return "compiled"
    return "PyTorch, GPU only" if name in GPU_ONLY else "PyTorch"


def table():
    rows = []
    for module, names in asked_for():
        for kind in sorted({status(name) for name in names}):
            told = ", ".join(f"`{name}`" for name in names if status(name) == kind)
            rows.append(f"| {told} | `mmcv.ops.{module}` | {kind} |")
    return "\n".join(sorted(rows, key=lambda row: "| – " in row)) + "\n"


def test_table_lists_every_function():
    assert PAGE.read_text().partition(HEADER)[2] == table(), "python -m tests.test_docs_mmcv_ops"


def test_every_function_is_accounted_for():
    names = [name for _, names in asked_for() for name in names]
    assert len(names) > 90
    missing = [name for name in names if status(name).startswith("–")]
    assert 0 < len(missing) < len(names) / 2
    for name in missing:
        instead = re.escape(status(name).removeprefix("– "))
        message = rf"^mmcv\.ops: {name}: .* not provided by dcnzoo; use {instead}, or ask for it"
        with pytest.raises(NotImplementedError, match=message):
            getattr(_ext, name)()


def test_what_is_for_gpus_only(monkeypatch):
    mmcv_ops, called = importlib.import_module("mmcv.ops"), []
    for module, names in asked_for():
        for name in set(names) & set(GPU_ONLY):
            extension = importlib.import_module(f"mmcv.ops.{module}").ext_module
            monkeypatch.setattr(extension, name, lambda *args, **kwargs: called.append(1))
    points, boxes = torch.rand(2, 8, 3), torch.rand(2, 3, 7)
    x, mask = torch.rand(1, 4, 5, 5).requires_grad_(), torch.rand(1, 9, 10, 10)
    for call in (
        lambda: mmcv_ops.knn(3, points, points),
        lambda: mmcv_ops.furthest_point_sample(points, 3),
        lambda: mmcv_ops.points_in_boxes_part(points, boxes),
        lambda: mmcv_ops.points_in_boxes_all(points, boxes),
        lambda: mmcv_ops.carafe_naive(x, mask, 3, 1, 2).sum().backward(),
    ):
        with pytest.raises((AssertionError, TypeError, RuntimeError)):
            call()
    assert not called


if __name__ == "__main__":
    PAGE.write_text("".join(PAGE.read_text().partition(HEADER)[:2]) + table())
