"""The head of a run in the terminal: the model, the data, the device and the weights."""

import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_world_size, is_distributed
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from dcnzoo.layers.offsets import OffsetPredictor
from dcnzoo.openmmlab.weights import without_wrapper
from dcnzoo.utils.errors import printable
from dcnzoo.utils.text import counted, few

COUNTED_IMAGES = 20_000  # the objects of a larger data set are not counted: reading it takes seconds


def head_of(runner: Runner, loaders: Mapping[str, DataLoader]) -> list[tuple[str, str]]:
    """Return the model, its deformable layers, the data, the device and the weights."""
    model = without_wrapper(runner.model)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    name = f" ({Path(runner.cfg.filename).stem})" if getattr(runner.cfg, "filename", None) else ""
    weights = runner._load_from or ""
    return [
        ("model", f"{type(model).__name__}{name}, {millions:.1f} million parameters"),
        ("layers", ", ".join(_deformable_layers(model))),
        *((part, _describe(loader.dataset)) for part, loader in loaders.items()),
        ("device", _device(runner)),
        ("processes", _processes(runner)),
        ("weights", os.path.normpath(weights) if os.path.isfile(weights) else weights),
    ]


def _deformable_layers(model: nn.Module) -> Iterator[str]:
    owners = (
        type(module).__name__
        for module in model.modules()
        if any(isinstance(child, OffsetPredictor) for child in module.children())
    )
    for name, count in sorted(Counter(owners).items()):
        yield f"{count} × {name}"


def _describe(dataset: Any) -> str:
    """Return the numbers of images, objects and classes, and the first names of the classes."""
    text = counted(len(dataset), "images")
    reader = getattr(dataset, "get_data_info", None)
    if reader is not None and len(dataset) <= COUNTED_IMAGES:
        objects = sum(len(reader(index).get("instances", ())) for index in range(len(dataset)))
        text += f", {counted(objects, 'objects')}"
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes") or ()
    return f"{text}, {counted(len(classes), 'classes')}: {printable(few(classes, 4))}" if classes else text


def _device(runner: Runner) -> str:
    device = next(runner.model.parameters(), torch.empty(0)).device
    threads = f", {counted(torch.get_num_threads(), 'threads')}" if device.type == "cpu" else ""
    wrapper = getattr(runner, "optim_wrapper", None)
    precision = getattr(wrapper, "cast_dtype", None) or "mixed precision"
    return f"{device}{threads}, {precision if isinstance(wrapper, AmpOptimWrapper) else 'float32'}"


def _processes(runner: Runner) -> str:
    """Return the numbers of processes, machines and images per step of a distributed run."""
    if not is_distributed():
        return ""
    machines = len(set(all_gather_object(socket.gethostname())))
    text = f"{get_world_size()} on {counted(machines, 'machines')}"
    wrapper = getattr(runner, "optim_wrapper", None)
    if not isinstance(wrapper, OptimWrapper):  # in a test, it is still a config
        return text
    loader = runner.train_dataloader
    images = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)
    images *= get_world_size() * getattr(wrapper, "_accumulative_counts", 1)
    return f"{text}, {counted(images, 'images')} per step"
