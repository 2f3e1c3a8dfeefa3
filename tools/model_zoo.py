"""Write model_zoo.md and model-index.yml from the metafiles (``nox -s zoo``).

``--measure`` instead measures the models of dcnzoo whose metafiles lack entries, and adds these to them.
"""

import argparse
import re
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from dcnzoo.cli import one_line_errors
from dcnzoo.utils.files import write_text
from dcnzoo.utils.folders import mim_folder
from dcnzoo.zoo.description import operators_of
from dcnzoo.zoo.index import Model, find, models

if TYPE_CHECKING:
    from mmengine.model import BaseModel

INTRODUCTION = """\
# Model zoo

This page lists the configs of dcnzoo and the deformable configs of MMDetection {mmdet}, with their results
and weights. `nox -s zoo` writes it from the metafiles of both packages; do not edit it.
[Use and reproduce published models](docs/zoo.md) explains how to load them in a program, from a mirror and
offline.

```bash
dcnzoo zoo list --dcn            # list the deformable models
dcnzoo zoo download NAME         # download the weights and verify the checksum
```

**Source of the figures.** The column *figures* names the source of all figures in its row, including memory
and speed:

- `published (…)`: the figures of the named publisher. dcnzoo has not measured them again.
  [`dcnzoo reproduce`](docs/zoo.md#reproduce-a-paper) evaluates the weights and compares the result with the
  published one.
- `measured (machine, date, command)`: measured by dcnzoo, with the command that repeats the measurement.

**Columns**

- *box AP*, *mask AP*: in percent; for COCO on `val2017`.
- *CPU time*: inference time on one thread, relative to Faster R-CNN R-50, as `tools/model_zoo.py --measure`
  measures it; the figures are of 2026-11-21 and 2026-11-22, of older kernels. The weights are random. They
  give few detections, so masks take less time than with trained weights.
- *speed*: of inference, in images per second.
- *deformable*: the operator, and the part of the model that uses it.
- *parameters*: in millions.
- *FLOPs*: in billions of multiply–adds. For InternImage with Mask R-CNN and Cascade Mask R-CNN they are the
  authors' figures. For all other models, `dcnzoo flops` counted them at the config's test size.
- *memory*: of training, in GB per GPU.
- *licence*: of the weights; *not stated* if the publisher names none for them.
"""
OURS = "## Configs of dcnzoo\n\nThese configs are in [`configs/`](configs).\n"
THEIRS = """\
## Configs of MMDetection

These configs of MMDetection contain deformable convolution or deformable pooling.
[DCN in a detector](docs/detectors.md) explains how dcnzoo runs them.
"""
COLUMNS = (
    *("config", "box AP", "mask AP", "CPU time", "speed", "weights", "deformable", "parameters", "FLOPs"),
    *("memory", "data", "figures", "licence"),
)
# entries of the metafiles that --measure writes
PARAMETERS, FLOPS, CPU_TIME = "Parameters (M)", "FLOPs (G)", "CPU time (× Faster R-CNN R-50)"
ROOT = Path(__file__).resolve().parents[1]
MMDET = version("mmdet")
FOLDERS = {"dcnzoo": "configs", "mmdet": f"https://github.com/open-mmlab/mmdetection/blob/v{MMDET}/configs"}


def render() -> str:
    """Render the page from the metafiles of dcnzoo and of the installed MMDetection."""
    ours = [model for model in models() if model.package == "dcnzoo"]
    theirs = [model for model in models() if model.package == "mmdet" and operators_of(model)]
    sections = [INTRODUCTION.format(mmdet=MMDET), OURS, *tables(ours), THEIRS, *tables(theirs)]
    return "\n".join(sections)


def tables(models: Iterable[Model]) -> Iterator[str]:
    """Yield a heading and a table for each folder of configs."""
    for folder, group in groupby(models, lambda model: model.config.parent.name):
        group = list(group)
        paper = next((model.paper for model in group if model.paper.get("URL")), {})
        title = paper.get("Title", paper.get("URL"))
        lines = [f"### {folder}", "", *([f"[{title}]({paper['URL']})", ""] if paper else [])]
        lines += [row(COLUMNS), row(["---"] * len(COLUMNS))]
        lines += [row(cells) for model in group for cells in rows_of(model)]
        yield "\n".join(lines) + "\n"


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def rows_of(model: Model) -> Iterator[list[str]]:
    """Yield one row per source of results; memory and speed are the publisher's."""
    operators = [f"{operator} ({part})" for part, operator in operators_of(model).items()]
    weights = [weights_link(model, each) for each in model.weights]
    if note := model.metadata.get("Weights Note"):
        weights.append(note)
    for source in model.sources() or ["–"]:
        results = [result for result in model.results if result.source == source]
        data = ", ".join(dict.fromkeys(r.dataset for r in results)) or "–"
        figures = model.metrics(source) if results else {}
        published = source.startswith("published")
        yield [
            f"[{model.name}]({FOLDERS[model.package]}/{model.config.parent.name}/{model.config.name})",
            *(str(figures.get(metric, "–")) for metric in ("box AP", "mask AP")),
            model.metadata.get(CPU_TIME, "–"),
            speed(model) if published else "–",
            ", ".join(weights) or "–",
            ", ".join(operators) or "none",
            *(model.metadata.get(name, "–") for name in (PARAMETERS, FLOPS)),
            model.metadata.get("Training Memory (GB)", "–") if published else "–",
            data,
            source,
            model.licence or ("not stated" if model.weights else "–"),
        ]


def weights_link(model: Model, weights: str) -> str:
    if "://" in weights:
        return f"[download]({weights})"
    return f"[in the repository]({Path(weights).relative_to(mim_folder(model.package)).as_posix()})"


def speed(model: Model) -> str:
    times = model.metadata.get("inference time (ms/im)")
    if not times:
        return "–"
    first = times[0]  # with several resolutions, the first belongs to the results
    return f"{1000 / first['value']:.1f} ({first['hardware']})"


def measure() -> None:
    """Add the entries that models of dcnzoo lack to their metafiles."""
    from dcnzoo.openmmlab.flops import count
    from dcnzoo.openmmlab.runs.build import build_model
    from dcnzoo.openmmlab.runs.recipe import Recipe

    unit = build_model(Recipe.read(find("faster-rcnn_r50_fpn_1x_coco").config))
    for model in models():
        complete = model.metadata.keys() >= {CPU_TIME, PARAMETERS, FLOPS}
        if complete or model.package != "dcnzoo" or model.config.parent.name == "demo":
            continue
        built = build_model(Recipe.read(model.config))
        ((operations, _),) = count(built)
        entries = {
            CPU_TIME: round(relative_time(built, unit), 2),
            PARAMETERS: round(sum(p.numel() for p in built.parameters()) / 1e6, 1),
            FLOPS: round(sum(operations.values()) / 1e9, 1),
        }
        entries = {name: value for name, value in entries.items() if name not in model.metadata}
        add_metadata(ROOT / "configs" / model.config.parent.name / "metafile.yml", model.name, entries)
        print(f"{model.name}: {entries}", flush=True)


def relative_time(model: "BaseModel", unit: "BaseModel") -> float:
    """Return the ratio of two detectors' median times for a picture on one thread, taking turns."""
    import torch

    from benchmarks.measure import take_turns
    from dcnzoo.openmmlab.flops import random_batch

    batch = random_batch(800, 1333)
    with torch.no_grad():
        calls = {each: (partial(each.test_step, batch), 1) for each in (model, unit)}
        times = take_turns(calls, seconds=0)
    return times[model].median / times[unit].median


def add_metadata(file: Path, name: str, entries: dict[str, float]) -> None:
    """Write entries to the ``Metadata`` of a model in a metafile."""
    # up to the model's Metadata, or to its end if it has none
    start = rf"(  - Name: {re.escape(name)}\n(?:    .*\n)*?)(?:    Metadata:\n|(?!    ))"
    lines = "".join(f"      {key}: {value}\n" for key, value in entries.items())
    text = file.read_text(encoding="utf-8")
    write_text(file, re.sub(start, rf"\g<1>    Metadata:\n{lines}", text, count=1))


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure models; write no page")
    if parser.parse_args().measure:
        return measure()
    files = sorted(path.parent.name for path in ROOT.glob("configs/*/metafile.yml"))
    index = "".join(f"  - configs/{folder}/metafile.yml\n" for folder in files)
    (ROOT / "model-index.yml").write_text(f"Import:\n{index}", encoding="utf-8")
    (ROOT / "model_zoo.md").write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
