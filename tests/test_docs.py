"""The documentation: links resolve, code runs and commands exist."""

import functools
import importlib
import inspect
import json
import os
import pkgutil
import re
import runpy
import shlex
from pathlib import Path

import click
import pytest
import torch

from benchmarks import claims
from benchmarks.study import page
from benchmarks.study.training import read
from dcnzoo.cli import commands

from .processes import ROOT

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "configs/*/README.md")
    for path in ROOT.glob(pattern)
    if "_build" not in path.parts
)


def rand(**sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name: torch.rand(size) for name, size in sizes.items()}


CONV = {"input": (1, 4, 5, 6), "offset": (1, 18, 5, 6), "mask": (1, 9, 5, 6), "bias": (2,)}
ROIS = {"maps": torch.rand(1, 3, 8, 9), "rois": torch.tensor([[0.0, 1, 2, 90, 80]])}
LEVELS = {"spatial_shapes": torch.tensor([[4, 5], [2, 3]]), "level_start_index": torch.tensor([0, 20])}
LOCATIONS = {"sampling_locations": (1, 7, 2, 2, 4, 2), "attention_weights": (1, 7, 2, 2, 4)}
DCNV3 = {"input": (1, 5, 6, 64), "offset": (1, 5, 6, 72), "mask": (1, 5, 6, 36)}
# Pages whose Python blocks run in order, with the variables that they assume
RUN = {
    "README.md": {},
    **{
        f"docs/{name}.md": {}
        for name in ("layers", "your_network", "video", "migration", "internimage", "offset_layout", "deploy")
    },
    "docs/ops/deform_conv.md": rand(**CONV, weight=(2, 4, 3, 3), transposed_weight=(4, 2, 3, 3)),
    "docs/ops/deform_attn.md": {
        **LEVELS,
        **rand(**DCNV3, offset_mask=(1, 5, 6, 112)),
        **rand(value=(1, 26, 2, 3), **LOCATIONS, sampling_loc_attn=(1, 7, 2, 24)),
    },
    "docs/ops/boxes.md": {
        **ROIS,
        **rand(offset=(1, 2, 7, 7), boxes=(5, 4), scores=(5,), rotated=(5, 5), rotated_scores=(5,)),
        "rotated_rois": torch.tensor([[0.0, 20, 16, 24, 12, 0.5]]),
    },
}

if not PAGES:
    pytest.skip("needs the repository", allow_module_level=True)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def is_config(block: str) -> bool:
    return re.match(r"(_base_|model|optim_wrapper) = ", block) is not None


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere_and_code_compiles(path):
    for block in blocks(path, "python"):
        compile(block, name_of(path), "exec")
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = path.parent / file if file else path
        assert place.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(place), f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_exist_and_have_these_options(path):
    text = "\n".join(blocks(path, "bash")).replace("\\\n", " ")
    for line in re.findall(r"^(?:\w+=\S* )*dcnzoo ([^#|>\n]+)", text, re.MULTILINE):
        command, words = commands, shlex.split(line)
        while isinstance(command, click.Group) and not words[0].startswith("-"):
            command = command.get_command(click.Context(command), words.pop(0))
            assert command, f"dcnzoo {line}: no such command"
        options = {name for parameter in command.params for name in (*parameter.opts, "--help")}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options or command.name == "run", f"dcnzoo {line}: no such option"


def test_api_page_lists_every_public_name():
    """Each name in ``__all__`` of the page's modules has a docstring, and its object an entry."""
    entries, modules = [], [importlib.import_module("dcnzoo")]
    text = (ROOT / "docs/api.md").read_text()
    for kind, name, options in re.findall(r"^\.\. auto(\w+):: (\S+)\n((?:   .*\n)*)", text, re.MULTILINE):
        if kind != "module":
            entries.append(pkgutil.resolve_name(name) if "." in name else getattr(modules[-1], name))
            continue
        modules.append(importlib.import_module(name))
        members = {
            option: re.findall(r"\w+", names)
            for option, names in re.findall(r":([\w-]*members):(.*(?:\n    .*)*)", options)
        }
        names = members.get("members")
        if names == []:  # all
            excluded = members.get("exclude-members", ())
            names = [each for each in getattr(modules[-1], "__all__", ()) if each not in excluded]
        entries += [getattr(modules[-1], each) for each in names or ()]
    for module in modules:
        for name in set(getattr(module, "__all__", ())) - {"__version__"}:
            value = getattr(module, name)
            assert inspect.getdoc(value), f"{module.__name__}.{name}"
            known = inspect.ismodule(value) or any(value is entry for entry in entries)
            assert known, f"{module.__name__}.{name}"


SLOW = ("docs/deploy.md",)  # exports a detector, as tests/export/test_tools.py does


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in RUN]
)
def test_code_runs(page, tmp_path, monkeypatch):
    # inductor takes a minute; ops/test_ops.py tests it
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for package in ("mmdet", "onnxscript", "onnxruntime", "openvino") if "deploy" in page else ():
        pytest.importorskip(package)
    namespace = dict(RUN[page])
    for block in blocks(ROOT / page, "python"):
        if not is_config(block):
            exec(compile(block, page, "exec"), namespace)


def test_configs_turn_dcn_on(tmp_path):
    pytest.importorskip("mmdet")
    from .demo import Config, build

    configs = [
        block
        for path in PAGES
        for block in blocks(path, "python")
        if re.match(r"""_base_ = ["']mmdet::""", block) and "dcn=True" in block
    ]
    assert configs
    for text in configs:
        file = tmp_path / "config.py"
        file.write_text(text)
        cfg = Config.fromfile(file)
        cfg.model.backbone.init_cfg = None
        assert any("conv_offset" in name for name in build(cfg.model, "meta").state_dict()), text


def test_figures_are_those_of_their_sources():
    """``python -m benchmarks.claims`` lists them."""
    assert not [(place, lost) for place, _, sources, lost in claims.claims() if lost or not sources]


def test_a_changed_or_exchanged_figure_is_no_claim(tmp_path):
    source = tmp_path / "rows.csv"
    source.write_text("v2,box,0.0219,0.0171,0.0267")
    assert not claims.missing("| box +0.022 (+0.017 to +0.027) |", [source])
    for wrong in ("+0.021 (+0.017 to +0.027)", "+0.022 (+0.027 to +0.017)", "+0.022 (+0.022 to +0.027)"):
        assert claims.missing(f"box {wrong}", [source]), wrong


def test_study_is_that_of_its_rows():
    text, _ = page.page_of(read(), ROOT / "docs/demo_times.csv")
    assert text == (ROOT / "docs/study.md").read_text(encoding="utf-8")


def printed(notebook) -> list[str]:
    """What the cells of a notebook print."""
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", ()))
    return ["".join(output["text"]) for output in outputs if output["output_type"] == "stream"]


@pytest.mark.slow
def test_tutorial(monkeypatch):
    """Every cell runs and prints what is stored, except numbers; the detector has an AP."""
    for package in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run at the same time
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PATH", os.environ["PATH"])  # the program changes it
    executed = runpy.run_path(str(ROOT / "docs/run_tutorial.py"))["execute"]()
    text = "".join(printed(executed))
    stored = "".join(printed(json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))))
    words, expected = (sorted(re.findall(r"[^\W\d]+", each)) for each in (text, stored))
    assert words == expected, "run docs/run_tutorial.py, and paste the training into docs/train_your_data.md"
    ap = dict(re.findall(r"(box|mask) AP ([\d.]+)", text))
    assert float(ap["mask"]) > 0.05 and float(ap["box"]) > 0.05 and "Warning" not in text
