"""Load checkpoints as data: reading a file through mmengine never runs code from it.

Pickle, the format of checkpoints, can call any function while it is read. Only tensors, plain Python
objects and the types in mmengine's log are allowed. Damaged files and NaN are rejected too.
"""

import contextlib
import functools
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as loading
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dcnzoo.compat.patches import Changes
from dcnzoo.utils.errors import UserError, one_line, printable
from dcnzoo.utils.files import file_digest
from dcnzoo.utils.formats import EXPORTED, PICTURES, VIDEOS
from dcnzoo.utils.text import few, short

Source = str | os.PathLike | IO[bytes]
MapLocation = str | torch.device | Callable | dict | None  # the same types as in torch.load

LISTS = list | tuple | dict | np.ndarray  # files of different programs have class names in these types
_NAMES = "dataset_meta"  # key of the class names in ``meta`` and in the metadata of safetensors

_read_ahead: dict[tuple[int, ...], Mapping] = {}  # at most one file, from read_ahead until it is loaded


class CheckpointError(UserError):
    """The file is not a checkpoint, contains objects that are not allowed, or does not fit the model."""


# what a file is by its ending, for errors about a wrong file
_KINDS = {
    **dict.fromkeys(PICTURES, "a picture"),
    **dict.fromkeys(VIDEOS, "a video"),
    **dict.fromkeys(EXPORTED, "an exported detector"),
    **dict.fromkeys((".yml", ".yaml", ".txt", ".log", ".csv", ".html", ".md"), "a text"),
    **{".py": "a config", ".json": "a JSON file", ".zip": "an archive"},
}


def damage(path: str | os.PathLike) -> str | None:
    """Return what a file is instead of a checkpoint, such as ``an empty file``; None if no damage is found.

    Verifies the CRC-32 of each part of the archive that torch ≥ 1.6 writes. In files of older versions of
    torch, only the first byte is checked.
    """
    if kind := _KINDS.get(Path(path).suffix.lower()):
        return kind
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for its other end
        return "a folder, pipe or device"
    with open(path, "rb") as file:
        first = file.read(2)
    if first != b"PK":
        return None if first.startswith(b"\x80") else "another file" if first else "an empty file"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # BadZipFile, or an error of a compression method or of encryption
        return f"a file that is truncated or damaged ({one_line(error)}); copy it again"
    if broken:
        return f"a file that is damaged ({printable(broken)}); copy it again"
    return None


def content_digest(path: str | os.PathLike) -> str:
    """Return the first digits of a file's checksum, for messages, or "no such file"."""
    return file_digest(path)[:8] if os.path.isfile(path) else "no such file"


def load_file(path: Source, unsafe_load: bool = False, map_location: MapLocation = "cpu") -> Mapping:
    """Read a checkpoint file. For a safetensors file, ``meta`` contains only the class names and colours.

    Content of :func:`read_ahead` is returned once, as it is: on the CPU.

    Args:
        unsafe_load: allow any object. This **runs any code in the file** with your rights: use it only for
            files from authors whose programs you would run.

    Raises:
        CheckpointError: the file is damaged, is no checkpoint, has other objects, or a weight is not finite.
        UserError: ``unsafe_load`` is neither True nor False.
    """
    if not isinstance(unsafe_load, bool):
        raise UserError(f"unsafe_load: expected True or False, got {unsafe_load!r}")
    if content := _read_ahead.pop(_identity(path), None):
        return content
    name = str(path) if isinstance(path, str | os.PathLike) else "checkpoint"
    if name.endswith(".safetensors"):
        checkpoint = _load_safetensors(name)
    elif isinstance(path, str | os.PathLike) and (reason := damage(path)):
        raise CheckpointError(f"{name}: expected a checkpoint, got {reason}")
    else:
        checkpoint = _load_pickle(path, name, unsafe_load, map_location)
    if not isinstance(meta := checkpoint.get("meta"), Mapping | None):
        raise CheckpointError(f"{name}: meta: expected a dict, got {short(meta)}")
    if problem := not_finite(checkpoint):
        raise CheckpointError(f"{name}: expected finite weights, got {problem}; use an earlier checkpoint")
    return checkpoint


def read_ahead(path: str | os.PathLike) -> None:
    """Read a file. The next :func:`load_file` of it returns this content, if the file is unchanged."""
    _read_ahead.clear()
    content = load_file(path)
    _read_ahead[_identity(path)] = content


def _identity(path: Source) -> tuple[int, ...]:
    """Return numbers that change if a file is replaced or written; none if there is no file."""
    if not isinstance(path, str | os.PathLike) or not os.path.exists(path):
        return ()
    state = os.stat(path)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def not_finite(checkpoint: Mapping) -> str:
    """Return which weights of a checkpoint are NaN or infinite, as a text; empty if all are finite."""
    parts = [weights_of(checkpoint), checkpoint.get("ema_state_dict")]
    tensors = [item for part in parts if isinstance(part, Mapping) for item in part.items()]
    names = [key for key, value in tensors if isinstance(value, Tensor) and not _is_finite(value)]
    return f"NaN or infinity in {printable(few(names, 3))}" if names else ""


def weights_of(checkpoint: Mapping) -> Any:
    """Return the value of ``state_dict`` or ``model`` in a checkpoint; without these keys, the checkpoint."""
    return next((checkpoint[key] for key in ("state_dict", "model") if key in checkpoint), checkpoint)


def _load_pickle(path: Source, name: str, unsafe_load: bool, map_location: MapLocation) -> Mapping:
    try:
        with Changes() as changes:
            load_own_checkpoints(changes)
            # opt-in
            checkpoint = torch.load(path, map_location=map_location, weights_only=not unsafe_load)  # nosec B614
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{name}: contains {refused[1]}, which is neither weights nor plain data. Only if you trust "
                "its author: unsafe_load=True loads the file and runs the code in it"
            ) from None
        raise CheckpointError(f"{name}: expected a checkpoint, found something else") from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise CheckpointError(f"{name}: expected a checkpoint: {one_line(error)}") from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{name}: expected a dict with weights, found {type(checkpoint).__name__}")
    return checkpoint


def _load_safetensors(path: str | os.PathLike) -> Mapping:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no dict
            names = json.loads((file.metadata() or {}).get(_NAMES, "{}"))
        if names:
            if not (isinstance(names["classes"], list) and all(isinstance(c, str) for c in names["classes"])):
                raise ValueError(f"classes: expected a list of names, got {short(names['classes'])}")
            colors = [tuple(color) for color in names.get("palette", [])]  # MMDetection draws no lists
            names = {"classes": tuple(names["classes"]), "palette": colors or None}
        return {"state_dict": weights, "meta": {_NAMES: names} if names else {}}
    except (SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected safetensors: {one_line(error)}") from error


def to_safetensors(weights: Mapping[str, Tensor], meta: Mapping) -> bytes:
    """Return a safetensors file of weights, with the names of the classes in a checkpoint's ``meta``.

    Weights that share memory, such as those of a head for several levels, are written once for each name.
    """
    tensors: dict[str, Tensor] = {}
    written = set()
    for name, value in weights.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in written else tensor
        written.add(memory)
    known, kinds = class_names(meta), (list, tuple, np.ndarray)
    names = {key: known[key] for key in ("classes", "palette") if isinstance(known.get(key), kinds)}
    return save(tensors, {_NAMES: json.dumps(names, default=np.ndarray.tolist)} if "classes" in names else {})


def class_names(meta: Mapping) -> dict:
    """Return ``classes`` and ``palette`` of a checkpoint's ``meta``, also those of MMDetection 2.x.

    Raises:
        CheckpointError: the classes are not a list.
    """
    known = meta.get("dataset_meta")
    names = {str(key).lower(): each for key, each in known.items()} if isinstance(known, Mapping) else {}
    if "CLASSES" in meta:
        names = {"classes": meta["CLASSES"], "palette": meta.get("PALETTE")}
    if not isinstance(classes := names.get("classes"), LISTS | None):
        raise CheckpointError(f"checkpoint: classes: expected a list of names, got {short(classes)}")
    if isinstance(classes, dict) and all(isinstance(name, str) for name in classes.values()):
        classes = classes.values()  # by number
    return names if classes is None else {**names, "classes": tuple(map(str, classes))}


def _is_finite(value: Tensor) -> bool:  # not checked: float8 and sparse tensors, which have no isfinite
    checkable = value.is_floating_point() and value.itemsize > 1 and value.layout == torch.strided
    return not checkable or value.is_meta or bool(torch.isfinite(value).all())


def _history_method(owner: object, name: str) -> object:
    """Return a method of ``HistoryBuffer``, to which pickles of logs refer; refuse every other attribute."""
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise TypeError(f"checkpoint: expected an attribute of HistoryBuffer, got {owner!r}.{name}")
    return getattr(owner, name)


_numpy: Any = np._core  # type: ignore[attr-defined]  # pickles contain names of this private module
_reconstruct, _scalar = _numpy.multiarray._reconstruct, _numpy.multiarray.scalar
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
    allowed = torch.serialization.get_safe_globals()  # undoing the change must not remove these
    added = [each for each in LOG_TYPES if each not in allowed]
    changes.enter_context(torch.serialization.safe_globals(added))


def enforce_weights_only(changes: Changes) -> None:
    """Make every checkpoint loader of mmengine use :func:`load_file`.

    Without this patch:

    - Downloads (``load_from='https://…'``, ``'torchvision://…'``, …) are read with ``weights_only=False`` and
      without a checksum. The patch verifies the checksum in the file name, if there is one.
    - ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``, often set because of a single file, applies to all files.
    - ``--resume`` executes ``meta['config']``, a text from MMDetection 2.x, to compare numbers of GPUs.

    An unknown name, such as ``torchvision://resnet5O``, becomes a :class:`UserError`.
    """
    load = CheckpointLoader.load_checkpoint.__func__

    @functools.wraps(load)
    def load_checkpoint(
        cls, filename: str, map_location: MapLocation = None, logger: object = None
    ) -> Mapping:
        try:  # the runner passes no logger, and mmengine would then print
            checkpoint = load(cls, filename, map_location, logger or "current")
        except KeyError as error:  # the name is not in mmengine's tables
            raise UserError(f"{filename}: expected the name of published weights, found none") from error
        if isinstance(checkpoint.get("meta"), dict):
            checkpoint["meta"].pop("config", None)
        return checkpoint

    changes.set(CheckpointLoader, "load_checkpoint", classmethod(load_checkpoint))

    def load_local(file: Source, map_location: MapLocation = None, *_: object) -> Mapping:
        file = os.path.expanduser(file) if isinstance(file, str) else file
        return load_file(file, map_location=map_location)

    changes.set_item(CheckpointLoader._schemes, "", load_local)
    changes.set(loading, "load_url", load_url)


@contextlib.contextmanager
def unsafe_loading(unsafe_load: bool) -> Iterator[None]:
    """Context in which mmengine's loaders of local files use ``unsafe_load`` of :func:`load_file`."""
    with Changes() as changes:
        if unsafe_load:
            readers = CheckpointLoader._schemes
            changes.set_item(readers, "", lambda file, where=None: load_file(file, unsafe_load, where))
        yield


def load_url(
    url: str, model_dir: str | None = None, map_location: MapLocation = None, progress: bool = True
) -> Mapping:
    """Load as ``torch.hub.load_state_dict_from_url`` does, but verify the download and run no code."""
    from dcnzoo.utils.fetch import fetch  # imports requests

    return load_file(fetch(url, model_dir), map_location=map_location)
