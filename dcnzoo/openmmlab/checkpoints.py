"""Checkpoints are data: reading one runs nothing that is in it, whichever way mmengine is asked for it.

Pickle, the format of checkpoints, can call any function while it is read. Only tensors, plain Python
objects and the types of mmengine's log are let through.
"""

from __future__ import annotations

import functools
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as loading
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors

from dcnzoo.compat.patches import Changes
from dcnzoo.utils.errors import UserError, one_line

MapLocation = str | torch.device | Callable | dict | None  # as torch.load has it


class CheckpointError(UserError):
    """A file that is no checkpoint, not one that may be read, or not one of this model."""


def load_file(
    path: str | os.PathLike | IO[bytes], trust: bool = False, map_location: MapLocation = "cpu"
) -> Mapping:
    """What a checkpoint file holds.

    Args:
        trust: read anything, which **runs whatever code the file holds**, with your rights: only for
            files from somebody whose programs you would run.

    Raises:
        CheckpointError: it holds other objects and is not trusted, or it is no checkpoint.
    """
    name = path if isinstance(path, str | os.PathLike) else "checkpoint"
    if str(name).endswith(".safetensors"):
        try:
            return load_safetensors(name)
        except SafetensorError as error:
            raise CheckpointError(f"{name}: expected safetensors: {one_line(error)}") from error
    try:
        with Changes() as changes:
            load_own_checkpoints(changes)
            checkpoint = torch.load(path, map_location=map_location, weights_only=not trust)  # nosec B614  # said above
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise CheckpointError(
                f"{name}: holds {found[1]}, which is neither weights nor plain data. Only if you trust its "
                "author: --unsafe-load (trust=True) reads the file and runs the code in it; dcnzoo zoo "
                "publish FILE OUT --unsafe-load --save-keys state_dict writes only the weights to OUT"
            ) from None
        raise CheckpointError(f"{name}: expected a checkpoint, found something else") from error
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: expected a checkpoint: {one_line(error)}") from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{name}: expected a dict with weights, found {type(checkpoint).__name__}")
    return checkpoint


def _history_method(owner: object, name: str) -> object:
    """``getattr`` for files that name ``HistoryBuffer.mean`` and the like, and for nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise TypeError(f"checkpoint: expected an attribute of HistoryBuffer, got {owner!r}.{name}")
    return getattr(owner, name)


_reconstruct, _scalar = np._core.multiarray._reconstruct, np._core.multiarray.scalar
# The types in mmengine's log, which are harmless
LOG_TYPES = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_history_method, f"{builtins}.getattr") for builtins in ("builtins", "__builtin__")),
]


def load_own_checkpoints(changes: Changes) -> None:
    """``torch.load`` reads mmengine's log; about anything else it stays as strict as it is."""
    allowed = torch.serialization.get_safe_globals()
    added = [each for each in LOG_TYPES if each not in allowed]

    def remove() -> None:
        others = [each for each in torch.serialization.get_safe_globals() if each not in added]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)

    torch.serialization.add_safe_globals(added)
    changes.callback(remove)


def enforce_weights_only(changes: Changes) -> None:
    """Every way in which mmengine reads a checkpoint uses :func:`load_file`.

    Without it:

    - What ``load_from='https://…'``, ``'torchvision://…'`` and their like download is read with
      ``weights_only=False`` and compared with no checksum. With it, a checksum in the name is verified.
    - onedl-mmengine's reader falls back to ``weights_only=False`` where a file is refused.
    - ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``, which many set for the sake of one file, opens all.
    - ``--resume`` executes ``meta['config']``, a text of MMDetection 2.x, to compare numbers of GPUs.
    """
    load = CheckpointLoader.load_checkpoint.__func__

    @functools.wraps(load)
    def load_checkpoint(cls, *args: object, **kwargs: object) -> Mapping:
        checkpoint = load(cls, *args, **kwargs)
        if isinstance(checkpoint.get("meta"), dict):
            checkpoint["meta"].pop("config", None)
        return checkpoint

    changes.set(CheckpointLoader, "load_checkpoint", classmethod(load_checkpoint))
    changes.set_item(CheckpointLoader._schemes, "", load_from_local)
    changes.set(loading, "load_url", load_url)
    if hasattr(loading, "_safe_torch_load"):  # onedl-mmengine
        changes.set(
            loading,
            "_safe_torch_load",
            lambda file, map_location=None, *_: load_file(file, map_location=map_location),
        )


def load_from_local(filename: str, map_location: MapLocation = None) -> Mapping:
    """mmengine's reader of files, by :func:`load_file`."""
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(2, "no such checkpoint", str(path))
    return load_file(path, map_location=map_location)


def load_url(
    url: str, model_dir: str | None = None, map_location: MapLocation = None, progress: bool = True
) -> Mapping:
    """``torch.hub.load_state_dict_from_url``, but a download that goes on, is verified, and runs nothing."""
    from dcnzoo.utils.fetch import fetch  # imports requests

    return load_file(fetch(url, model_dir), map_location=map_location)
