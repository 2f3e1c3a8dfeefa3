"""Load checkpoints as data: reading a file through mmengine never runs code from it.

Pickle, the format of checkpoints, can call any function while it is read. Only tensors, plain Python
objects and the types in mmengine's log are allowed. Damaged files and NaN are rejected too.
"""

import functools
import hashlib
import itertools
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model.weight_init import PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as loading
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dcnzoo.compat.patches import Changes
from dcnzoo.utils.checksums import file_digest
from dcnzoo.utils.errors import UserError, one_line, printable
from dcnzoo.utils.files import files_beside, read_beside
from dcnzoo.utils.folders import LAST, last_checkpoint
from dcnzoo.utils.formats import KINDS
from dcnzoo.utils.text import few, short

Source = str | os.PathLike | IO[bytes]
MapLocation = str | torch.device | Callable | dict | None  # the same types as in torch.load

LISTS = list | tuple | dict | np.ndarray  # of names of classes, in files of several programs
_NAMES = "dataset_meta"  # key of the names of the classes in ``meta``, and in the metadata of safetensors


@dataclass(frozen=True)
class SavedCheckpoints:
    """The checkpoints of the trainings in a work directory.

    Attributes:
        template: of the names that the training writes.
        out_dir: setting of the checkpoint hook: they are in its subfolder with the name of ``work_dir``.

    Raises:
        UserError: the names would not tell the number.
    """

    work_dir: Path
    template: str = "epoch_{}.pth"
    out_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        try:
            names = {number: self.template.format(number) for number in (1, 10**6)}
            is_told = all(self.step(Path(name)) == number for number, name in names.items())
        except (ValueError, LookupError, AttributeError, TypeError):
            is_told = False
        if not is_told or "/" in self.template:
            raise UserError(
                "default_hooks.checkpoint.filename_tmpl: expected a name with one {} for the number, such as "
                f"epoch_{{}}.pth, got {self.template}"
            )

    @classmethod
    def of(cls, cfg: Config) -> "SavedCheckpoints":
        """Return the checkpoints of a training with this config."""
        hook = (cfg.get("default_hooks") or {}).get("checkpoint")
        hook = hook if isinstance(hook, Mapping) else {}
        default = "epoch_{}.pth" if hook.get("by_epoch", True) else "iter_{}.pth"
        return cls(Path(cfg.work_dir), hook.get("filename_tmpl") or default, hook.get("out_dir"))

    @property
    def is_local(self) -> bool:
        return "://" not in str(self.out_dir)

    @property
    def folder(self) -> Path:
        work_dir = Path(os.path.abspath(self.work_dir))
        if self.out_dir is None or str(self.out_dir) == str(work_dir) or not self.is_local:
            return self.work_dir
        return Path(self.out_dir, work_dir.name)

    @property
    def is_apart(self) -> bool:
        """Whether they are not in the work directory, but in a local folder of their own."""
        return self.is_local and os.path.realpath(self.folder) != os.path.realpath(self.work_dir)

    def has(self, file: str | os.PathLike) -> bool:
        """Whether a path is in the folder."""
        return os.path.realpath(os.path.dirname(file)) == os.path.realpath(self.folder)

    def log_folder(self, file: str | os.PathLike) -> Path:
        """Return the work directory of the training that wrote a checkpoint."""
        return self.work_dir if self.has(file) else Path(file).parent

    def number(self, name: str) -> int | None:
        """Return the epoch or iteration in the name of a checkpoint; None if no training gives this name.

        Also of the best validation: mmengine puts ``best_`` and the metric before the name. And of an earlier
        training that counts iterations in place of epochs.
        """
        templates = self.template, "epoch_{}.pth", "iter_{}.pth"
        for template, digits in itertools.product(templates, re.findall(r"\d+", name)):
            own = template.format(int(digits))
            if name == own or (name.startswith("best_") and name.endswith(f"_{own}")):
                return int(digits)
        return None

    def step(self, path: Path) -> int | None:
        """Return the epoch or iteration of a checkpoint to resume from; None if it is none."""
        number = self.number(path.name)
        return number if number is not None and path.name == self.template.format(number) else None

    def numbered(self) -> dict[int, Path]:
        """Return the checkpoints of the training by their epoch or iteration."""
        paths = ((self.step(path), path) for path in self.folder.glob("*"))
        return {step: path for step, path in paths if step is not None and _is_written(path)}

    def undamaged(self) -> Path | str | None:
        """Return the checkpoint to resume from, the latest undamaged one; name the damaged ones.

        Those after the one that ``last_checkpoint`` names are from another run, unless they are newer: then
        the process ended after writing one and before updating ``last_checkpoint``.

        Raises:
            UserError: all are damaged.
        """
        pointer, last, numbered = self.work_dir / LAST, last_checkpoint(self.work_dir), self.numbered()
        if not self.is_local:  # only mmengine's backend can read it
            return (read_beside(pointer) or "").strip() or None
        named = self.step(last) if last else None
        if last and named is None and self.has(last) and _is_written(last):
            return last  # with the names of another config
        damaged = 0
        for step in sorted(numbered, reverse=True):
            is_later = named is not None and step > named
            if is_later and numbered[step].stat().st_mtime < pointer.stat().st_mtime:
                continue
            try:
                if numbered[step].is_file():  # sharded optimizers save folders
                    load_file(numbered[step], map_location="meta")
                return numbered[step]
            except CheckpointError as error:
                damaged += 1
                print_log(f"checkpoint: {error}; using the previous one", "current", logging.WARNING)
        if damaged:
            raise UserError(f"resume: expected an undamaged checkpoint, found {damaged} damaged ones")
        return None

    def files(self) -> list[Path]:
        """List all checkpoints, also those of the best validation."""
        return [path for path in self.folder.glob("*") if self.number(path.name) is not None]

    def after(self, file: Path) -> set[Path]:
        """Return the checkpoints after one, with those of the best validation; none if it is the last one."""
        step, numbers = self.step(file), {path: self.number(path.name) or 0 for path in self.files()}
        if step is None or step >= max(self.numbered(), default=0):
            return set()  # a best one may be newer: its training writes it again
        return {path for path, number in numbers.items() if number > step}

    def best(self) -> Path | None:
        """Return the one of the best validation; of several, such as one per metric, that of the last one."""
        last = last_checkpoint(self.work_dir)  # the folder, also if the config is not known
        paths = files_beside(self.folder if last is None else last.parent, "best_*")
        numbers = {path: number for path in paths if (number := self.number(path.name)) is not None}
        return max(numbers, key=lambda path: (numbers[path], path.name), default=None)

    @property
    def can_resume(self) -> bool:
        """A process that was killed may have left a checkpoint without the file ``last_checkpoint``."""
        return bool(self.numbered()) if self.is_local else os.path.lexists(self.work_dir / LAST)

    @property
    def exist(self) -> bool:
        """Whether a training has written some, even if only the best one is left."""
        return os.path.lexists(self.work_dir / LAST) or bool(self.files())


def _is_written(path: Path) -> bool:
    """Whether a path is a file, not a pipe or broken link; or a folder as sharded optimizers save it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


_verified: set[tuple[int, ...]] = set()  # files that this process has read without damage


class CheckpointError(UserError):
    """The file is not a checkpoint, contains objects that are not allowed, or does not fit the model."""


def damage(path: str | os.PathLike) -> str | None:
    """Describe the file in place of a checkpoint; None if nothing is wrong with it.

    Verifies the CRC-32 of each part of the archive that torch ≥ 1.6 writes, once as long as the file stays as
    it is. In files of older versions of torch, only the first byte is checked.
    """
    if kind := KINDS.get(Path(path).suffix.lower()):
        return kind
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for its other end
        return "a folder, pipe or device"
    with open(path, "rb") as file:
        first = file.read(2)
    if first != b"PK":
        return None if first.startswith(b"\x80") else "another file" if first else "an empty file"
    state = os.stat(path)
    identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if identity in _verified:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # besides BadZipFile, those of five compression methods and of encryption
        return f"a file that is truncated or damaged ({one_line(error)}); copy it again"
    if broken:
        return f"a file that is damaged ({printable(broken)}); copy it again"
    _verified.add(identity)
    return None


def content_digest(path: str | os.PathLike) -> str:
    """Return a checksum of a checkpoint. Of an archive, as torch writes it, only the table is read."""
    if not os.path.isfile(path):
        return "no such file"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = [
                (part.filename.partition("/")[2], part.CRC, part.file_size) for part in archive.infolist()
            ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
    return file_digest(path).hexdigest()[:8]


def load_file(path: Source, unsafe_load: bool = False, map_location: MapLocation = "cpu") -> Mapping:
    """Read a checkpoint file. Of a safetensors file, ``meta`` contains the names of the classes.

    Args:
        unsafe_load: allow any object. This **runs any code in the file** with your rights: use it only for
            files from authors whose programs you would run.

    Raises:
        CheckpointError: it is damaged or no checkpoint, contains other objects, or a weight is not finite.
    """
    name = str(path) if isinstance(path, str | os.PathLike) else "checkpoint"
    if name.endswith(".safetensors"):
        checkpoint = _load_safetensors(name)
    elif isinstance(path, str | os.PathLike) and (reason := damage(path)):
        raise CheckpointError(f"{name}: expected a checkpoint, got {reason}")
    else:
        checkpoint = _load_pickle(path, name, unsafe_load, map_location)
    if not isinstance(meta := checkpoint.get("meta"), Mapping | None):
        raise CheckpointError(f"{name}: meta: expected a dict, got {short(meta)}")
    for weights in (weights_of(checkpoint), checkpoint.get("ema_state_dict")):
        if not isinstance(weights, Mapping):
            continue
        names = [key for key, value in weights.items() if isinstance(value, Tensor) and not _is_finite(value)]
        if names:
            raise CheckpointError(
                f"{name}: expected finite weights, got NaN or infinity in {printable(few(names, 3))}; "
                "use an earlier checkpoint"
            )
    return checkpoint


def weights_of(checkpoint: Mapping) -> Any:
    """Return the part of a checkpoint that is loaded: with one of two keys, or all of it."""
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
                "its author: unsafe_load=True loads the file and runs the code in it; "
                "dcnzoo zoo publish FILE OUT --unsafe-load --save-keys state_dict writes only weights to OUT"
            ) from None
        raise CheckpointError(f"{name}: expected a checkpoint, found something else") from error
    except Exception as error:  # a damaged pickle can raise any
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

    Of weights that share memory, as those of a head for several levels, the file has a copy for each name.
    """
    tensors: dict[str, Tensor] = {}
    written = set()
    for name, value in weights.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in written else tensor
        written.add(memory)
    return save(tensors, names_as_metadata(meta))


def names_as_metadata(meta: Mapping) -> dict[str, str]:
    """Write the classes and colours in a checkpoint's ``meta`` as the metadata of a safetensors file."""
    known, kinds = class_names(meta), (list, tuple, np.ndarray)
    names = {key: known[key] for key in ("classes", "palette") if isinstance(known.get(key), kinds)}
    return {_NAMES: json.dumps(names, default=np.ndarray.tolist)} if "classes" in names else {}


def class_names(meta: Mapping) -> dict:
    """Return ``classes`` and ``palette`` of a checkpoint's ``meta``, also those of MMDetection 2.x.

    Raises:
        CheckpointError: the classes are no list.
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
    """``getattr`` for pickles that refer to ``HistoryBuffer.mean`` and the like, and for nothing else."""
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
      without a checksum. With it, a checksum in the file name is verified.
    - onedl-mmengine falls back to ``weights_only=False`` if torch refuses a file.
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
        except KeyError as error:  # of mmengine's tables of names
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
    if hasattr(loading, "_safe_torch_load"):  # onedl-mmengine
        changes.set(loading, "_safe_torch_load", load_local)
    changes.wrap(PretrainedInit, "__call__", _initialise)


def _initialise(initialise: Callable, self: PretrainedInit, module: nn.Module) -> None:
    """Initialise a module from the file of its ``init_cfg``; refuse one of which nothing fits.

    mmengine would leave random weights, with a warning.
    """
    load = loading.load_state_dict

    def load_state_dict(module: nn.Module, state_dict: Mapping, *args: Any, **kwargs: Any) -> None:
        names = module.state_dict().keys()
        if state_dict and names and not names & state_dict.keys():
            ends = ((key, name) for name in names for key in state_dict if key.endswith(f".{name}"))
            key, name = next(ends, (next(iter(state_dict)), next(iter(names))))
            prefix = key.removesuffix(name)
            hint = f"; prefix='{prefix}' takes a part of the file" if prefix != key else ""
            raise UserError(f"init_cfg: expected parameters such as {name}, got others, such as {key}{hint}")
        load(module, state_dict, *args, **kwargs)

    with Changes() as changes:
        changes.set(loading, "load_state_dict", load_state_dict)
        initialise(self, module)


def load_url(
    url: str, model_dir: str | None = None, map_location: MapLocation = None, progress: bool = True
) -> Mapping:
    """Like ``torch.hub.load_state_dict_from_url``, but resumes and verifies the download and runs no code."""
    from dcnzoo.utils.fetch import fetch  # imports requests

    return load_file(fetch(url, model_dir), map_location=map_location)
