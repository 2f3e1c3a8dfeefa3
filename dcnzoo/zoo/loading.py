"""Load a detector with weights by name."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from dcnzoo.openmmlab.detector import build, dataset_meta, read_config, require_device
from dcnzoo.utils.errors import UserError, user_errors
from dcnzoo.zoo import download
from dcnzoo.zoo.index import find


def load(
    name: str,
    *,
    checkpoint: str | os.PathLike | None = None,
    device: str = "cpu",
    unsafe_load: bool = False,
    cfg_options: dict | None = None,
    allow_partial: bool = False,
) -> nn.Module:
    """Load a detector with its published weights, ready for ``mmdet.apis.inference_detector``.

    Args:
        name: as for :func:`dcnzoo.zoo.find`, or a config file, ``configs/mine.py``.
        checkpoint: a file with other weights; required for a config file.
        unsafe_load: load a checkpoint that contains more than weights; this **runs any code in the file**.
        cfg_options: settings to override, ``{"model.test_cfg.rcnn.score_thr": 0.3}``.
        allow_partial: if the checkpoint does not fit the model, load the parameters that fit.

    Raises:
        UserError: the model is unknown or has no weights, torch cannot use the device, the download failed,
            or the checkpoint does not fit.
    """
    place = require_device(device)
    model = Path(name) if is_config_file(name) else find(name)
    if checkpoint is None:
        if isinstance(model, Path):
            raise UserError(f"checkpoint: expected a file with weights for {name}, got none")
        checkpoint = download(model.id)
    elif not Path(checkpoint).is_file():
        raise UserError(f"checkpoint: expected a file, found none at {checkpoint}")
    with user_errors():
        cfg = read_config(model if isinstance(model, Path) else model.config)
        cfg.merge_from_dict(cfg_options or {})
        if "model" not in cfg:
            raise UserError(f"{name}: expected a config with a model, found none")
        detector, meta = build(cfg, checkpoint, unsafe_load, allow_partial)
        detector.dataset_meta = dataset_meta(cfg, meta)
    return detector.to(place)


def is_config_file(name: str) -> bool:
    """Whether ``name`` refers to a config file and not to a model, whose name may end in ``.py``.

    Raises:
        UserError: it refers to a file that does not exist.
    """
    path = Path(name)
    if "::" in name or path.suffix != ".py":
        return False
    if not path.is_file() and len(path.parts) > 1:
        raise UserError(f"model: expected a config file, found none at {name}")
    return path.is_file()
