"""Write configs as text. Paths are relative to the config's folder, so that the folder can be moved."""

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dcnzoo.utils.files import read_beside

_CONFIG = r"^(_base_ *=|model *= *(dict\(|\{)|with read_base\()"
DIRECTORY = "{{ fileDirname }}"  # MMEngine replaces it in the text of a config by the config's folder
# Placeholder for the config's folder in values. It is random: otherwise, a class name from a file could have
# the placeholder in it, and the folder's name, perhaps code, would be put into the text of the config.
_MARK = secrets.token_hex(8)
_JOINED = ("ann_file", "data_prefix", "proposal_file")  # MMDetection's data sets join them with data_root


def portable(path: str, folder: str | os.PathLike, roots: Iterable[str]) -> str:
    """Return a path for :func:`text_of`: relative to the config's ``folder`` if the path is below a root.

    The path is returned unchanged if the folder's name has characters that MMEngine cannot read.
    """
    if any(letter in str(folder) for letter in "'\"\\{}\n"):
        return path
    for root in roots:
        if path.startswith(f"{root}/"):
            moved = os.path.relpath(os.path.realpath(root) + path[len(root) :], os.path.realpath(folder))
            return f"{_MARK}/{Path(moved).as_posix()}{'/' * path.endswith('/')}"
    return path


def below(value: Any, folder: Path, roots: Iterable[str], is_joined: bool = False) -> Any:
    """Return a setting with :func:`portable` paths, also inside dictionaries and lists.

    Args:
        is_joined: whether a relative path in it is below a ``data_root``; it then stays as it is.
    """
    if isinstance(value, str):
        # a relative path must exist: coco/bbox_mAP may be a metric
        own = os.path.isabs(value) or (not is_joined and os.path.exists(value))
        return portable(value, folder, roots) if own else value
    if isinstance(value, dict):
        joined = _JOINED if value.get("data_root") else ()
        return {key: below(item, folder, roots, is_joined or key in joined) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(below(item, folder, roots, is_joined) for item in value)
    return value


def text_of(cfg: Config) -> str:
    """Return the text of a config. The mark of :func:`portable` paths becomes MMEngine's template."""
    return without_templates(cfg.pretty_text).replace(_MARK, DIRECTORY)


def is_config(path: Path) -> bool:
    """Return whether a file looks like a config, without executing it."""
    return re.search(_CONFIG, read_beside(path) or "", re.MULTILINE) is not None


def without_templates(text: str) -> str:
    """Escape braces in the text of a config so that names of classes and files do not become templates."""
    return text.replace("{{", r"{\x7b")
