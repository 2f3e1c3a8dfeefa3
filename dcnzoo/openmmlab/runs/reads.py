"""Settings of a model that nobody reads, found by watching one loss and one prediction on a small picture."""

import copy
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import nn

from dcnzoo.openmmlab.config.read import files, is_published
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.runs.rehearse import without_trace
from dcnzoo.openmmlab.runs.separate_run import separate_run
from dcnzoo.utils.errors import UserError, one_line, printable
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import cut, nearest

_LARGEST = 500e6  # bytes of parameters
_SIZES = (96, 320)  # pixels; some families need more than the smallest one
_THRESHOLDS = ("score_thr", "conf_thr")
_WITH_FILES = ("init_cfg", "teacher_ckpt", "pretrained")  # are not loaded

Asked = dict[str, set[str]]  # path of a dictionary → the keys that code has asked it for


class _Watched(ConfigDict):
    """A dictionary that notes the keys that it is asked for, also in copies. ``**`` asks for all."""

    def watch(self, path: str, asked: Asked) -> "_Watched":
        self.__dict__.update(_path=path, _asked=asked)
        return self

    def _note(self, keys: Iterable[str]) -> None:
        if "_path" in vars(self):
            vars(self)["_asked"].setdefault(vars(self)["_path"], set()).update(keys)

    def __getitem__(self, key):
        self._note([key])
        return super().__getitem__(key)

    def __contains__(self, key):
        self._note([key])
        return super().__contains__(key)

    def get(self, key, default=None):
        self._note([key])
        return super().get(key, default)

    def pop(self, key, *default):
        self._note([key])
        return super().pop(key, *default)

    def setdefault(self, key, default=None):
        self._note([key])
        return super().setdefault(key, default)

    def keys(self):
        self._note(dict.keys(self))
        return super().keys()

    def values(self):
        self._note(dict.keys(self))
        return super().values()

    def items(self):
        self._note(dict.keys(self))
        return super().items()

    def __copy__(self):
        return self._with(dict.items(self))

    copy = __copy__

    def __deepcopy__(self, memo):
        return self._with([(key, copy.deepcopy(value, memo)) for key, value in dict.items(self)])

    def _with(self, items: Iterable[tuple[str, object]]) -> "_Watched":
        other = _Watched()
        for key, value in items:
            dict.__setitem__(other, key, value)
        return other.watch(vars(self)["_path"], vars(self)["_asked"]) if "_path" in vars(self) else other


def _watched(value: object, path: str, asked: Asked) -> Any:
    if isinstance(value, Mapping):
        node = _Watched()
        for key, each in value.items():
            dict.__setitem__(node, key, _watched(each, f"{path}.{key}", asked))
        return node.watch(path, asked)
    if isinstance(value, list | tuple):
        return type(value)(_watched(each, f"{path}.{index}", asked) for index, each in enumerate(value))
    return value


def require_read(cfg: Config, model: nn.Module) -> None:
    """Warn of settings that nobody reads; see :func:`unread`.

    Raises:
        UserError: some have a name similar to one that is read.
    """
    findings = [(finding, printable(f"{cfg.filename}: {finding}")) for finding in unread(cfg, model)]
    for _, line in (each for each in findings if not each[0].stops):
        print_log(line, "current", logging.WARNING)
    if lines := [line for finding, line in findings if finding.stops]:
        raise UserError(*lines)


def unread(cfg: Config, model: nn.Module) -> list[Finding]:
    """Return the settings of a model that nobody reads; an error if one with a similar name is read.

    A second model is built, runs, and is thrown away. Random generators, scopes and logs stay as they were.
    Settings of published configs, in the base or at the same place of another, are left out.

    Args:
        cfg: of the training.
        model: that has been built; a large one is not built again.
    """
    if sum(each.numel() * each.element_size() for each in model.parameters()) > _LARGEST:
        return [_not_watched("the model has more than 500 MB of parameters")]
    errors = []
    with separate_run(), without_trace(), DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        for size in _SIZES:
            asked: Asked = {}
            try:
                _run(_settings(cfg, asked), size)
                return [*_findings(cfg, asked)]
            except Exception as error:  # of a family that needs other data
                errors.append(error)
    return [_not_watched(one_line(errors[-1]))]


def _not_watched(reason: str) -> Finding:
    text = f"settings that nobody reads are not searched for: {cut(reason, 200)}"
    return Finding("model", text, stops=False)


def _settings(cfg: Config, asked: Asked) -> _Watched:
    settings = cfg.model.to_dict()
    if cfg.get("data_preprocessor"):
        settings.setdefault("data_preprocessor", cfg.data_preprocessor.to_dict())
    for _, node in dicts(settings):
        node.update({key: None for key in _WITH_FILES if key in node})
        node.update({key: 0.0 for key in _THRESHOLDS if isinstance(node.get(key), float)})
    return _watched(settings, "model", asked)


def _run(settings: _Watched, size: int) -> None:
    """Compute one loss and one prediction on pictures of ``size`` × ``size`` pixels."""
    from mmdet.testing import demo_mm_inputs

    model: Any = MODELS.build(settings)
    for training in (True, False):
        model.train(training)
        shapes = [[3, size, size]] * (1 + training)
        data = demo_mm_inputs(len(shapes), shapes, num_classes=2, with_mask=True, with_semantic=True)
        for sample in data["data_samples"]:
            sample.gt_instances.labels.zero_()  # the only one that each head has
        data = model.data_preprocessor(data, training)
        with torch.no_grad():
            model(**data, mode="loss" if training else "predict")


def _findings(cfg: Config, asked: Asked) -> Iterator[Finding]:
    paths = [part.path for part in files(cfg.text) if part.is_published]
    bases = [Config.fromfile(path, import_custom_modules=False) for path in paths]
    reported: list[str] = []
    for path, node in dicts(cfg.model.to_dict(), "model"):
        if "type" in node or any(f"{path}.".startswith(f"{outer}.") for outer in reported):
            continue
        for key in sorted(node.keys() - asked.get(path, set()) - {*_WITH_FILES}):
            reported.append(f"{path}.{key}")
            outer = re.sub(r"\.\d+", "", path).rpartition(".")[2]
            published = not bases and is_published(outer, key)
            if published or any(_has(base, reported[-1]) for base in bases):
                continue
            close = nearest(key, asked.get(path, set()) - node.keys(), 0.8)
            text = f"expected {close}, got an unknown key" if close else "no code has read it in an iteration"
            yield Finding(reported[-1], text, "key", stops=bool(close) and not is_published(outer, key))


def _has(cfg: Config, path: str) -> bool:
    node: Any = cfg
    for key in path.split("."):
        if isinstance(node, list | tuple) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, Config | Mapping) and key in node:
            node = node[key]
        else:
            return False
    return True
