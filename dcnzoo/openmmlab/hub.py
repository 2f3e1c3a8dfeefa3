"""Detectors in repositories of the Hugging Face Hub: a config as data, safetensors and a model card.

Requires huggingface_hub.
"""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dcnzoo.openmmlab.checkpoints import to_safetensors
from dcnzoo.openmmlab.config import json_config
from dcnzoo.utils.errors import UserError, one_line, user_errors
from dcnzoo.utils.files import write_bytes, write_text
from dcnzoo.version import __version__

PREFIX = "hf://"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PROGRAM = "config.py"  # in place of CONFIG; never run


def fetch_model(name: str) -> tuple[Path, Path]:
    """Download a detector; return its config and its weights.

    Args:
        name: ``hf://OWNER/NAME``, or ``hf://OWNER/NAME@REVISION``.

    Raises:
        UserError: the name is not of this form, the repository or a file does not exist, or the config is not
            accepted.
    """
    from huggingface_hub import snapshot_download

    match = re.fullmatch(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not match:
        raise UserError(f"model: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, got {name}")
    files = [CONFIG, PROGRAM, WEIGHTS]
    try:
        folder = Path(snapshot_download(match[1], revision=match[2], allow_patterns=files))
    except Exception as error:  # huggingface_hub's errors have several base classes
        raise UserError(f"{name} cannot be downloaded: {one_line(error)}") from error
    config, program, weights = folder / CONFIG, folder / PROGRAM, folder / WEIGHTS
    if program.is_file() and not config.is_file():
        raise UserError(
            f"{name}: expected {CONFIG}, got {PROGRAM}, a program. Only if you trust its author: hf download "
            f"{match[1]} --local-dir FOLDER, then model=FOLDER/{PROGRAM}, checkpoint=FOLDER/{WEIGHTS}"
        )
    for file in (config, weights):
        if not file.is_file():
            raise UserError(f"{name}: expected the file {file.name}, found none")
    json_config.read(config, f"{name}: {CONFIG}")
    return config, weights


def push_model(
    model: nn.Module,
    repository: str,
    *,
    metrics: Mapping[str, float] | None = None,
    data: str = "",
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a detector to a repository of the Hub, which is created if it does not exist.

    Args:
        model: from :func:`dcnzoo.openmmlab.runs.execute.build`.
        repository: ``OWNER/NAME``.
        metrics: result of ``detector.evaluate``, for the model card.
        data: the data on which it was trained and evaluated, for the model card.
        private, revision, token: see ``huggingface_hub.HfApi``.

    Returns:
        The name for :func:`dcnzoo.load`, ``hf://OWNER/NAME``, with ``@REVISION`` if it was given.

    Raises:
        UserError: the config cannot be written as data: the detector has classes of your own.
    """
    from huggingface_hub import HfApi

    api, meta = HfApi(token=token), getattr(model, "dataset_meta", {})
    cfg: Any = model.cfg
    try:
        text = json_config.write(cfg)
    except ValueError as error:
        raise UserError(
            f"push_to_hub: expected a detector of the classes in mmdet, mmcv and dcnzoo, got {error}; a "
            "repository contains no programs. Publish the package with your classes, the config and the "
            "weights elsewhere, or the file of dcnzoo export, which needs none of them"
        ) from error
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder, CONFIG), text)
        write_bytes(Path(folder, WEIGHTS), to_safetensors(model.state_dict(), {"dataset_meta": meta}))
        write_text(Path(folder, CARD), card(model, repository, metrics or {}, data))
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            delete_patterns=[CONFIG, PROGRAM],  # that of an earlier version
            commit_message=f"Detector, written by dcnzoo {__version__}",
        )
    return PREFIX + repository + (f"@{revision}" if revision else "")


def card(model: nn.Module, repository: str, metrics: Mapping[str, float], data: str) -> str:
    """Return the model card."""
    classes = ", ".join(map(str, getattr(model, "dataset_meta", {}).get("classes", ())))
    table = "".join(f"| {name} | {value:.3f} |\n" for name, value in metrics.items())
    lines = [
        "---\nlibrary_name: dcnzoo\npipeline_tag: object-detection\ntags: [deformable-convolution]\n---\n",
        f"# {repository.rpartition('/')[2]}\n",
        f"{type(model).__name__}, classes: {classes or 'unknown'}. Data: {data or 'not stated'}.\n",
        f'```python\nimport dcnzoo\n\ndetector = dcnzoo.load("{PREFIX}{repository}")\n```\n',
    ]
    if metrics:
        lines.append("| metric | value |\n| --- | --- |\n" + table)
    return "\n".join(lines)
