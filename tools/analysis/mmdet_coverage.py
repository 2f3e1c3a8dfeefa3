"""Whether a config of every family in MMDetection builds, predicts and trains here.

::

    make coverage                                           # writes docs/mmdet_coverage.md
    python tools/analysis/mmdet_coverage.py                 # all: ten minutes on one core
    python tools/analysis/mmdet_coverage.py 'yolo|^detr$'   # the families whose name matches

A family is a folder of MMDetection's ``configs``; one config speaks for it. It is tried whole, nothing of
its architecture is smaller: a prediction, then a training step with its own optimizer, on random images of
128 pixels or as small as the model takes them, without pretrained weights. Each in a process of its own,
which may run out of memory or of time without harm. What has been tried is kept in ``--results`` and not
tried again until the versions of the packages change, or ``--again`` is given.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

import dcnzoo.models  # noqa: F401  before mmdet, which needs mmcv.ops
from dcnzoo.utils.progress import make_progress

# isort: split
import mmdet
from mmdet.models.detectors import SemiBaseDetector
from mmdet.models.mot import OCSORT, BaseMOTModel, ByteTrack, DeepSORT
from mmdet.models.reid import BaseReID
from mmdet.structures import ReIDDataSample
from mmdet.testing import demo_mm_proposals, demo_track_inputs
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from trial import MMDETS, configs_in, expect, finite, image_size, images, prepare, read, reason

SPEAKERS = {  # where the rule of `speaker` would choose one that leaves out what the family is about
    "centernet": "centernet_r18-dcnv2_8xb16-crop512-140e_coco.py",
    "dcn": "mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "dcnv2": "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
    "glip": "glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py",
    "gcnet": "mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco.py",
    "guided_anchoring": "ga-faster-rcnn_r50_fpn_1x_coco.py",
    "libra_rcnn": "libra-faster-rcnn_r50_fpn_1x_coco.py",
    "regnet": "mask-rcnn_regnetx-3.2GF_fpn_1x_coco.py",
    "rtmdet": "rtmdet-ins_tiny_8xb32-300e_coco.py",
    "sort": "sort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test.py",
    "strongsort": "strongsort_yolox_x_8xb4-80e_crowdhuman-mot20train_test-mot20test.py",
}
SIZES = ("r50_", "r50-", "tiny", "-t_", "-t-", "r18")
NO_MODELS = ("_base_", "common")  # parts of other families' configs
TEXTS = ("a cat", "dog", "red car")
SECONDS, MEMORY = 600, 12 << 30  # that a trial may take

PACKAGES = ("mmengine", "mmcv-lite", "mmcv", "mmdet", "onedl-mmengine", "onedl-mmcv", "onedl-mmdetection")
EXTRAS = ("mmpretrain", "timm", "torchvision", "transformers", "fairscale", "lap", "motmetrics")
EXTRAS += ("scikit-image", "scikit-learn")  # which some families ask for

PAGE = """\
# MMDetection, family by family

One config of every family (folder) of MMDetection {mmdet}'s configs, and whether it works with dcnzoo's
operators in place of a compiled mmcv: that it builds, predicts on an image, and makes a training step with
its own optimizer; losses finite, predictions numbers. Tried on the CPU; the whole architecture, on images of
128 pixels (SSD's of 400, DINO's and the like of 256), without pretrained weights. SORT, DeepSORT and
StrongSORT have no loss, their parts train by themselves: they track through two frames. A language model has
random weights. `misc` wraps whole models of Detectron2, which is on no package index and is compiled from its
repository; they use nothing of mmcv's.

**{working} of {number} families are ok**, {fresh} of them with what `make setup` installs:

    {installed}

{further}`make coverage` tries them all again and writes this page.

| family | config | result |
|---|---|---|
"""
FURTHER = """\
and the others, "with more", in an environment that has packages which only some families ask for:

    {installed}

"""


# Which


def families(pattern: str = "") -> Iterator[tuple[str, str]]:
    """Each folder of MMDetection's configs, and the config that speaks for it."""
    names: dict[str, list[str]] = {}
    for path in configs_in(MMDETS):
        family, _, name = path.as_posix().partition("/")
        if name and family not in NO_MODELS and re.search(pattern, family):
            names.setdefault(family, []).append(name)
    for family in sorted(names):
        yield family, f"mmdet::{family}/{SPEAKERS.get(family) or speaker(names[family])}"


def speaker(names: list[str]) -> str:
    """The smallest and plainest, by the look of its name; none of a subfolder if it can be avoided."""

    def key(name: str) -> tuple:
        sizes = [i for i, size in enumerate(SIZES) if size in name]
        return name.count("/"), min(sizes, default=len(SIZES)), len(name), name

    return min(names, key=key)


# Whether they work


def try_out(cfg: Config) -> None:
    """Build, predict, and train for a step.

    Raises:
        Exception: whatever goes wrong.
    """
    size = image_size(cfg)
    with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope("mmdet"):
        if "language_model" in cfg.model:
            cfg.model.language_model.name = small_bert(Path(folder))
            if "lang_model_name" in cfg.model.bbox_head:
                cfg.model.bbox_head.lang_model_name = folder
        for augment in (cfg.model.get("data_preprocessor") or {}).get("batch_augments") or ():
            if augment.type == "BatchFixedSizePad":  # to 1024 pixels, 64 times as many
                augment.size = (size, size)
        model = prepare(cfg)

        model.eval()
        with torch.no_grad():
            found = model.test_step(to_predict(model, size))
        expect(len(found) > 0, "no predictions")
        # infinite boxes are possible: YOLOv3's sizes are exponentials, and nothing here is trained
        expect(not any(values.isnan().any() for values in tensors(found)), "predictions are no numbers")

        if isinstance(model, DeepSORT):  # and SORT and StrongSORT: detector and ReID train by themselves
            return
        model.train()
        losses = model.train_step(to_train(model, size), build_optim_wrapper(model, cfg.optim_wrapper))
        expect(finite(losses["loss"]) and losses["loss"] > 0, f"the loss is {losses['loss']}")


def tensors(node: object) -> Iterator[Tensor]:
    """Of floating point, in data samples and what they are made of."""
    if isinstance(node, Tensor):
        yield from [node] if node.is_floating_point() else []
    elif isinstance(node, BaseDataElement):
        yield from tensors(list(node.values()))
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from tensors(value)


def to_predict(model: nn.Module, size: int) -> dict:
    if isinstance(model, BaseMOTModel):
        return demo_track_inputs(1, num_frames=2, image_shapes=(3, size, size))
    return detections(model, 1, size) if not isinstance(model, BaseReID) else persons()


def to_train(model: nn.Module, size: int) -> dict:
    if isinstance(model, BaseReID):
        return persons()
    if isinstance(model, SemiBaseDetector):
        branches = {name: detections(model, 2, size) for name in ("sup", "unsup_teacher", "unsup_student")}
        for batch in branches.values():
            for sample in batch["data_samples"]:
                sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
        return {key: {name: b[key] for name, b in branches.items()} for key in ("inputs", "data_samples")}
    if isinstance(model, BaseMOTModel) and not isinstance(model, ByteTrack | OCSORT):
        shape = (3, size, size)
        return demo_track_inputs(1, 2, [0], shape, num_items=[2], num_classes=1, with_mask=True)
    return detections(model, 2, size)


def detections(model: nn.Module, number: int, size: int) -> dict:
    """With words for detectors that are asked in words, and with proposals for those that make none."""
    batch = images(number, size, alike=True, texts=[TEXTS] * number, custom_entities=True)
    shapes = [image.shape for image in batch["inputs"]]
    for sample, proposals in zip(batch["data_samples"], demo_mm_proposals(shapes, 20), strict=True):
        if not getattr(model, "with_rpn", True):
            sample.proposals = proposals
        sample.gt_instances.labels.zero_()  # a class that every detector has
    return batch


def persons() -> dict:
    """Two of one, two of another, as ReID networks are shown them."""
    samples = [ReIDDataSample().set_gt_label(label) for label in (0, 0, 1, 1)]
    return {
        "inputs": [torch.randint(0, 256, (3, 256, 128), dtype=torch.uint8) for _ in samples],
        "data_samples": samples,
    }


def small_bert(folder: Path) -> str:
    """BERT with random weights, which reads letter by letter: the real one is downloaded."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words))).save_pretrained(folder)
    return str(folder)


def result_of(name: str) -> str:
    """``ok``, or in a line why not."""
    try:
        try_out(read(name))
    except Exception as error:
        return reason(error)
    return "ok"


def apart(name: str, seconds: float = SECONDS, memory: int = MEMORY) -> str:
    """:func:`result_of` in a process that is ended when it takes too long, or too much memory."""

    def trial() -> None:
        torch.set_num_threads(1)  # it has none of its parent's threads, and would wait for them
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        sender.send(result_of(name))

    fork = multiprocessing.get_context("fork")  # what has been imported need not be imported again
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=trial, daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else f"not done after {seconds:g} seconds"
    except EOFError:
        process.join()
        return f"the process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()


# The table


def versions() -> dict[str, str]:
    """Of what decides the results."""
    found = {}
    for package in ("torch", *PACKAGES, *EXTRAS):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def read_results(path: Path | None) -> tuple[dict[str, str], dict[str, str]]:
    """Versions and, by the config's name, results."""
    if path is None or not path.is_file():
        return {}, {}
    content = json.loads(path.read_text())
    return content["versions"], content["results"]


def page(rows: list[tuple[str, str, str]], fresh: dict[str, str], further: dict[str, str]) -> str:
    """``rows``: family, config, result. ``fresh``, ``further``: the versions in both environments."""

    def listed(packages: dict[str, str]) -> str:
        return ", ".join(f"{package} {number}" for package, number in packages.items())

    results = [result for *_, result in rows]
    head = PAGE.format(
        mmdet=mmdet.__version__,
        number=len(rows),
        working=sum(result.startswith("ok") for result in results),
        fresh=results.count("ok"),
        installed=listed(fresh),
        further=FURTHER.format(installed=listed(further)) if further else "",
    )
    return head + "".join(f"| {family} | `{name}` | {result} |\n" for family, name, result in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pattern", nargs="?", default="", help="regular expression (default: all)")
    parser.add_argument("--results", type=Path, default=Path("work_dirs/mmdet_coverage.json"), metavar="FILE")
    parser.add_argument("--again", action="store_true", help="try again what has been tried")
    parser.add_argument(
        "--after",
        type=Path,
        metavar="FILE",
        help="the results of an environment with fewer packages: try what is not ok there",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the page with the table")
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel("ERROR")  # initialisation logs every parameter
    here = versions()
    there, before = read_results(args.after)
    found, results = read_results(args.results)
    if args.again or found != here:
        results = {}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with make_progress(Console(stderr=True)) as progress:
        chosen = list(families(args.pattern))
        task = progress.add_task("trying out", total=len(chosen), note="")
        for family, name in chosen:
            progress.update(task, note=family)
            result = before.get(name)
            if result != "ok":
                if name not in results:
                    results[name] = apart(name)
                    args.results.write_text(json.dumps({"versions": here, "results": results}, indent=1))
                more = results[name] == "ok" and result is not None
                result = f"ok with more; without: {result}" if more else results[name]
            rows.append((family, name, result))
            print(f"{family}: {result}", flush=True)
            progress.advance(task)
    print(f"{sum(result.startswith('ok') for *_, result in rows)} of {len(rows)} families are ok")
    if args.out:
        args.out.write_text(page(rows, there or here, here if there else {}))


if __name__ == "__main__":
    main()
