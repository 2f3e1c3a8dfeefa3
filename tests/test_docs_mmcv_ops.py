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


def test_every_function_is_in_the_table_or_says_what_to_use():
    assert PAGE.read_text().partition(HEADER)[2] == table(), "python -m tests.test_docs_mmcv_ops"
    missing = [name for _, names in asked_for() for name in names if status(name).startswith("–")]
    assert missing
    for name in missing:
        instead = re.escape(status(name).removeprefix("– "))
        with pytest.raises(NotImplementedError, match=rf"^mmcv\.ops: {name}: .*{instead}"):
            getattr(_ext, name)()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU they fail in other ways")
def test_what_is_for_gpus_only_mmcv_refuses_on_the_cpu():
    ops = importlib.import_module("mmcv.ops")  # needs dcnzoo, which supplies mmcv._ext
    points, boxes = torch.rand(1, 5, 3), torch.rand(1, 2, 7)
    maps, mask = torch.rand(1, 2, 3, 3, requires_grad=True), torch.rand(1, 9, 6, 6)
    calls = {
        "knn_forward": lambda: ops.knn(2, points, points),
        "furthest_point_sampling_forward": lambda: ops.furthest_point_sample(points, 2),
        "carafe_naive_backward": lambda: ops.carafe_naive(maps, mask, 3, 1, 2).sum().backward(),
        "points_in_boxes_part_forward": lambda: ops.points_in_boxes_part(points, boxes),
        "points_in_boxes_all_forward": lambda: ops.points_in_boxes_all(points, boxes),
    }
    assert calls.keys() == set(GPU_ONLY)
    for call in calls.values():
        with pytest.raises((AssertionError, RuntimeError, TypeError), match=r"(?i)cuda|^$"):
            call()
    assert ops.furthest_point_sample_with_dist(torch.cdist(points, points), 2).shape == (1, 2)


if __name__ == "__main__":
    PAGE.write_text("".join(PAGE.read_text().partition(HEADER)[:2]) + table())
