"""docs/mmdet_coverage.md: complete, counted right, and so.

A few families of different kinds are tried by ``make test``, the others by ``make test-all``.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.structures import InstanceData

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools" / "analysis"))

import mmdet_coverage as tool  # noqa: E402
import trial  # noqa: E402

PAGE = (ROOT / "docs" / "mmdet_coverage.md").read_text()
ROWS = {
    family: tuple(rest)
    for family, *rest in re.findall(r"^\| (\S+) \| `(.+)` \| (.+) \|$", PAGE, re.MULTILINE)
}
QUICK = ("atss", "crowddet", "fast_rcnn", "qdtrack", "soft_teacher", "solo", "yolox")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ROWS]
)
def test_family(family):
    name, told = ROWS[family]
    result = tool.apart(name)
    if result != told:  # an environment with more packages, or with fewer, than the page's first
        assert told.startswith("ok with more") and result in ("ok", told.partition("without: ")[2])


def test_the_page_is_complete():
    assert [(family, name) for family, (name, _) in ROWS.items()] == list(tool.families())


def test_the_page_counts_right():
    results = [result for _, result in ROWS.values()]
    working = sum(result.startswith("ok") for result in results)
    assert f"**{working} of {len(ROWS)} families are ok**, {results.count('ok')} of them" in PAGE
    assert working >= 0.95 * len(ROWS)


def test_the_page_names_no_machine():
    assert not re.search(r"/(tmp|home|root|work|usr)/", PAGE)


def test_speaker():
    names = ["x_r101_1x.py", "x_r50_ms-3x.py", "x_r50_1x.py", "lvis/x_r50.py"]
    assert tool.speaker(names) == "x_r50_1x.py"
    assert tool.speaker(["y_s_8xb8.py", "y_tiny_8xb8.py"]) == "y_tiny_8xb8.py"


def test_speakers_are_there():
    for family, name in tool.SPEAKERS.items():
        assert (tool.MMDETS / family / name).is_file()


# That a fault would be noticed


def test_errors_are_one_line(monkeypatch):
    def broken(name):
        raise ValueError("a | b\nc")

    monkeypatch.setattr(tool, "read", broken)
    assert tool.apart("any") == "ValueError: a / b c"


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (lambda cfg: time.sleep(60), "not done after 0.2 seconds"),
        (lambda cfg: os._exit(7), "the process ended with status 7"),
    ],
    ids=["endless", "dies"],
)
def test_a_trial_that_does_not_end_well(monkeypatch, does, told):
    monkeypatch.setattr(tool, "read", lambda name: None)
    monkeypatch.setattr(tool, "try_out", does)
    assert tool.apart("any", seconds=0.2 if "seconds" in told else 60) == told


def test_a_trial_that_takes_too_much_memory(monkeypatch):
    monkeypatch.setattr(tool, "read", lambda name: None)
    monkeypatch.setattr(tool, "try_out", lambda cfg: torch.ones(1 << 33))
    assert "memory" in tool.apart("any", memory=8 << 30)


def test_a_parent_that_has_used_threads():
    """A forked process has none of its parent's, and would wait for them for ever."""
    parameter = torch.rand(300, 300, requires_grad=True)
    (parameter @ parameter).sum().backward()
    assert tool.apart(dict(tool.families("^atss$"))["atss"], seconds=120) == "ok"


def test_losses_that_are_no_number_are_noticed(monkeypatch):
    from mmdet.models import ATSSHead

    loss = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(ATSSHead, "loss_by_feat", lambda *args, **kwargs: dict(loss_cls=loss))
    assert tool.apart("mmdet::atss/atss_r50_fpn_1x_coco.py") == "AssertionError: the loss is nan"


def test_tensors():
    sample = InstanceData(scores=torch.rand(2), labels=torch.zeros(2, dtype=torch.long))
    assert [values.shape for values in tool.tensors([sample, {"x": (torch.rand(3), None)}])] == [(2,), (3,)]


def test_results_are_kept_until_versions_change(monkeypatch, tmp_path, capsys):
    tried = []
    monkeypatch.setattr(tool, "apart", lambda name: tried.append(name) or "ok")
    monkeypatch.setattr(tool, "versions", lambda: {"torch": "1"})

    def run(*arguments):
        results = ["--results", str(tmp_path / "results.json")]
        monkeypatch.setattr(sys, "argv", ["mmdet_coverage.py", "^(atss|detr)$", *results, *arguments])
        tool.main()
        number = len(tried)
        tried.clear()
        return number

    assert run() == 2
    assert run() == 0
    assert run("--again") == 2
    monkeypatch.setattr(tool, "versions", lambda: {"torch": "2"})
    assert run() == 2
    assert capsys.readouterr().out.endswith("2 of 2 families are ok\n")


def test_an_environment_with_more(monkeypatch, tmp_path):
    """Only what is not ok without is tried again, and the page tells both."""
    names = [name for _, name in tool.families("^(atss|detr|misc)$")]
    fewer, more, page = (tmp_path / name for name in ("fewer", "more", "page"))
    results = dict(zip(names, ("ok", "E: no x", "E: no y"), strict=True))
    fewer.write_text(json.dumps({"versions": {"torch": "1"}, "results": results}))
    tried = []
    monkeypatch.setattr(tool, "apart", lambda name: tried.append(name) or ("E: no y", "ok")["detr" in name])
    monkeypatch.setattr(tool, "versions", lambda: {"torch": "2", "x": "3"})
    files = ["--after", fewer, "--results", more, "--out", page]
    monkeypatch.setattr(sys, "argv", ["mmdet_coverage.py", "^(atss|detr|misc)$", *map(str, files)])
    tool.main()
    assert tried == names[1:]
    text = page.read_text()
    assert "**2 of 3 families are ok**, 1 of them" in text
    assert "    torch 1\n" in text and "    torch 2, x 3\n" in text
    assert text.endswith(
        f"| atss | `{names[0]}` | ok |\n"
        f"| detr | `{names[1]}` | ok with more; without: E: no x |\n"
        f"| misc | `{names[2]}` | E: no y |\n"
    )


def test_weights_are_forgotten():
    cfg = trial.read("mmdet::detr/detr_r50_8xb2-150e_coco.py")
    assert cfg.model.backbone.init_cfg is None and cfg.custom_imports.imports == ["dcnzoo.models"]
