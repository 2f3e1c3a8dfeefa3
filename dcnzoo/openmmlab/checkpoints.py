"""Load checkpoints as data: reading a file through mmengine never runs code from it.

Pickle, the format of checkpoints, can call any function while it is read. Only tensors, plain Python
objects and the types in mmengine's log are allowed.
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

MapLocation = str | torch.device | Callable | dict | None  # the same types as in torch.load


class CheckpointError(UserError):
    """The file is not a checkpoint, contains objects that are not allowed, or does not fit the model."""


def load_file(
    path: str | os.PathLike | IO[bytes], unsafe_load: bool = False, map_location: MapLocation = "cpu"
) -> Mapping:
    """Read a checkpoint file.

    Args:
        unsafe_load: allow any object. This **runs any code in the file** with your rights: use it only for
            files from authors whose programs you would run.

    Raises:
        CheckpointError: the file contains other objects and ``unsafe_load`` is False, or it is no checkpoint.
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
            # opt-in
            checkpoint = torch.load(path, map_location=map_location, weights_only=not unsafe_load)  # nosec B614
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise CheckpointError(
                f"{name}: contains {found[1]}, which is neither weights nor plain data. Only if you trust "
                "its author: --unsafe-load (unsafe_load=True) loads the file and runs the code in it; "
                "dcnzoo zoo publish FILE OUT --unsafe-load --save-keys state_dict writes only weights to OUT"
            ) from None
        raise CheckpointError(f"{name}: expected a checkpoint, found something else") from error
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: expected a checkpoint: {one_line(error)}") from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{name}: expected a dict with weights, found {type(checkpoint).__name__}")
    return checkpoint


def _history_method(owner: object, name: str) -> object:
    """``getattr`` for pickles that refer to ``HistoryBuffer.mean`` and the like, and for nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise TypeError(f"checkpoint: expected an attribute of HistoryBuffer, got {owner!r}.{name}")
    return getattr(owner, name)


_reconstruct, _scalar = np._core.multiarray._reconstruct, np._core.multiarray.scalar
# The types in mmengine's log. Loading them runs no code from the file.
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
    """Allow the types in mmengine's log in ``torch.load(weights_only=True)``; all other checks stay."""
    allowed = torch.serialization.get_safe_globals()
    added = [each for each in LOG_TYPES if each not in allowed]

    def remove() -> None:
        others = [each for each in torch.serialization.get_safe_globals() if each not in added]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)

    torch.serialization.add_safe_globals(added)
    changes.callback(remove)


def enforce_weights_only(changes: Changes) -> None:
    """Make every checkpoint loader of mmengine use :func:`load_file`.

    Without this patch:

    - Downloads (``load_from='https://…'``, ``'torchvision://…'``, …) are read with ``weights_only=False`` and
      without a checksum. With it, a checksum in the file name is verified.
    - onedl-mmengine falls back to ``weights_only=False`` if torch refuses a file.
    - ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``, often set because of a single file, applies to all files.
    - ``--resume`` executes ``meta['config']``, a text from MMDetection 2.x, to compare numbers of GPUs.
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
    """Replacement for mmengine's loader of local files; uses :func:`load_file`."""
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(2, "no such checkpoint", str(path))
    return load_file(path, map_location=map_location)


def load_url(
    url: str, model_dir: str | None = None, map_location: MapLocation = None, progress: bool = True
) -> Mapping:
    """Like ``torch.hub.load_state_dict_from_url``, but resumes and verifies the download and runs no code."""
    from dcnzoo.utils.fetch import fetch  # imports requests

    return load_file(fetch(url, model_dir), map_location=map_location)
