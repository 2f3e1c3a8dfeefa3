"""Try a config: a model without weights, small images, a process per trial."""

import copy
import importlib
import multiprocessing
import resource  # noqa: TID251  these trials are forked, which Windows cannot do either
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs, demo_mm_proposals
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from benchmarks.measure import ROOT
from dcnzoo.utils.folders import mim_folder

OF_A_USER = "_base_ = '{}'\ncustom_imports = dict(imports={})\n"
PRETRAINED = ("pretrained", "teacher_ckpt", "checkpoint")  # and init_cfg=dict(checkpoint=…)
TEXTS = ("a cat", "dog", "red car")
SECONDS, MEMORY = 600, 12 << 30  # limits of a trial: seconds, bytes


# Models and inputs


def read(name: str) -> Config:
    """Read a config and remove addresses of weights; ``package::…`` is inherited by a user's config."""
    package, colons, path = name.partition("::")
    if colons:
        # a list replaces the inherited list, so repeat the imports of the package's config
        file = mim_folder(package) / "configs" / path
        inherited = Config.fromfile(file, import_custom_modules=False).get("custom_imports") or {}
        theirs = inherited.get("imports", [])
        imports = ["dcnzoo.models", *([theirs] if isinstance(theirs, str) else theirs)]
        for module in imports:  # this error names the missing module; mmengine's shows all of sys.path
            importlib.import_module(module)
        cfg = Config.fromstring(OF_A_USER.format(name, imports), ".py")
    else:
        cfg = Config.fromfile(ROOT / name)
    forget_weights(cfg.get("model"))
    return cfg


def forget_weights(node: object) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            pretrained = isinstance(value, dict) and "checkpoint" in value
            if key in PRETRAINED and value is True:
                node[key] = False  # timm's
            elif (key.endswith(PRETRAINED) and isinstance(value, str)) or (key == "init_cfg" and pretrained):
                node[key] = None
            forget_weights(value)
    elif isinstance(node, list | tuple):
        for value in node:
            forget_weights(value)


def use_small_bert(cfg: Config, folder: Path) -> None:
    """Write a BERT with random weights and a vocabulary of letters; the real one would be a download."""
    if "language_model" not in cfg.model:
        return
    cfg.model.language_model.name = str(folder)
    if "lang_model_name" in cfg.model.bbox_head:
        cfg.model.bbox_head.lang_model_name = str(folder)
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words))).save_pretrained(folder)


def build(cfg: Config) -> nn.Module:
    if "data_preprocessor" in cfg:  # as in mmengine's Runner
        cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(copy.deepcopy(cfg.model))  # DINO modifies its config


def prepare(cfg: Config) -> nn.Module:
    """Build a model with initial weights, in the state before a Runner's first step."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = revert_sync_batchnorm(build(cfg))
        model.init_weights()
    for count in ("epoch", "iter"):  # read by TOOD, BoxInst and YOLOX
        MessageHub.get_current_instance().update_info(count, 0)
    return model


def image_size(cfg: Config) -> int:
    """Return 128 pixels; more for SSD, which has no padding, for detectors that select many queries, and for
    YOLOX, whose scores are products and rarely reach the threshold.
    """
    if cfg.model.get("backbone", {}).get("type") == "SSDVGG":
        return 400
    is_yolox = cfg.model.get("bbox_head", {}).get("type") == "YOLOXHead"
    return 256 if is_yolox or cfg.model.get("num_queries", 0) > 300 else 128


def detections(model: nn.Module, number: int, size: int) -> dict:
    """Return random images with all kinds of annotations, texts for grounding detectors, and proposals for
    detectors without an RPN.
    """
    shapes = [[3, size, size * 3 // 4]] * number
    annotated = dict(num_items=[2, 1][:number], num_classes=3, with_mask=True, with_semantic=True)
    batch = demo_mm_inputs(number, shapes, **annotated, texts=[TEXTS] * number, custom_entities=True)
    for sample, proposals in zip(batch["data_samples"], demo_mm_proposals(shapes, 20), strict=True):
        if not getattr(model, "with_rpn", True):
            sample.proposals = proposals
        sample.gt_instances.labels.zero_()  # a class that every detector has
    return batch


def tensors(node: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors in data samples and nested containers."""
    if isinstance(node, Tensor):
        yield from [node] if node.is_floating_point() else []
    elif isinstance(node, BaseDataElement):
        yield from tensors(list(node.values()))
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from tensors(value)


def finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


# Trials


def is_ok(result: str) -> bool:
    return result.startswith("ok")


def expect(condition: bool, otherwise: str) -> None:
    """Raise AssertionError with the text ``otherwise`` if ``condition`` is False."""
    if not condition:
        raise AssertionError(otherwise)


def predict(model: nn.Module, batch: dict) -> list:
    """Return the predictions.

    Raises:
        AssertionError: there are no predictions, or they contain NaN.
    """
    model.eval()
    with torch.no_grad():
        predictions = model.test_step(batch)
    expect(len(predictions) > 0, "no predictions")
    # infinite boxes are possible: an untrained YOLOv3 predicts sizes as exponentials
    expect(not any(values.isnan().any() for values in tensors(predictions)), "the predictions contain NaN")
    return predictions


def train(model: nn.Module, cfg: Config, batch: dict) -> Tensor:
    """Train for one step with the config's optimizer; return the sum of the losses.

    Raises:
        AssertionError: it is not finite.
    """
    model.train()
    logged = model.train_step(batch, build_optim_wrapper(model, cfg.optim_wrapper))
    loss = logged["loss"]
    expect(finite(loss), f"the loss is {loss}")
    return loss


def apart(trial: Callable[[], str | None], seconds: float = SECONDS, memory: int = MEMORY) -> str:
    """Run ``trial()`` in a separate process; return its result, or the reason for its failure in one line.

    ``None`` becomes ``ok``. The process is ended if it exceeds the limits of time or memory.
    """

    def run() -> None:
        torch.set_num_threads(1)  # a forked process lacks its parent's threads and would wait for them
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        MMLogger.get_current_instance().setLevel("ERROR")  # initialisation would log every parameter
        try:
            result = trial() or "ok"
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            result = text.partition(";")[0].replace("|", "/")
        sender.send(result)

    fork = multiprocessing.get_context("fork")  # inherits the imported modules
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=run, daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else f"not finished after {seconds:g} seconds"
    except EOFError:
        process.join()
        return f"the process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()
