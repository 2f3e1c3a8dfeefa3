"""Published weights by name: ``torchvision://resnet50``, ``open-mmlab://resnext101_32x4d``.

mmengine contains tables that map names to addresses. :func:`dcnzoo.utils.fetch.fetch` downloads and
verifies the files.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import mmengine
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as loading

from dcnzoo.compat.patches import Changes
from dcnzoo.utils.errors import UserError

_TABLES = {
    "torchvision": "get_torchvision_models",
    "modelzoo": "get_torchvision_models",
    "open-mmlab": "get_external_models",
    "openmmlab": "get_external_models",
    "mmcls": "get_mmcls_models",
}


def weights_by_name(changes: Changes) -> None:
    """Look up torchvision's weights in mmengine's table; suggest the closest names for an unknown one."""
    changes.wrap(loading, "get_torchvision_models", _without_torchvision)
    schemes = CheckpointLoader._schemes
    for scheme in (f"{name}://" for name in _TABLES):
        if scheme in schemes:
            changes.set_item(schemes, scheme, _checked(schemes[scheme]))


class _TorchvisionModels(dict):
    """Name → address. Imports torchvision, if installed, only for names that are not in the table."""

    def __init__(self, known: Mapping[str, str], ask: Callable[[], Mapping[str, str]]) -> None:
        super().__init__(known)
        self.ask = ask

    def __missing__(self, name: str) -> str:
        first = name.removesuffix(".imagenet1k_v1")
        if first in self:
            return self[first]
        if find_spec("torchvision") is None:
            raise KeyError(name)
        return self.ask()[name]


def _without_torchvision(ask: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
    table = Path(mmengine.__file__).parent / "hub" / "torchvision_0.12.json"
    known = json.loads(table.read_text(encoding="utf-8"))
    return _TorchvisionModels({name: url for name, url in known.items() if url}, ask)


def _checked(load: Callable) -> Callable:
    @functools.wraps(load)
    def load_by_name(filename: str, map_location: object = None) -> Mapping:
        try:
            return load(filename, map_location)
        except KeyError as error:
            scheme, _, name = filename.partition("://")
            close = difflib.get_close_matches(name, getattr(loading, _TABLES[scheme])(), n=3, cutoff=0.5)
            hint = f"; the closest names: {', '.join(close)}" if close else ""
            raise UserError(
                f"{filename}: expected the name of published weights, found none{hint}"
            ) from error

    return load_by_name
