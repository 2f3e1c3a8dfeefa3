"""Detectors in repositories of the Hugging Face Hub: a config as data, safetensors and a model card."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from dcnzoo.openmmlab.checkpoints import to_safetensors
from dcnzoo.openmmlab.config import json_config
from dcnzoo.utils.errors import UserError, one_line, user_errors
from dcnzoo.utils.files import write_bytes, write_text

PREFIX = "hf://"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PROGRAM = "config.py"  # a config that is code: an error names it, and it is never run


def fetch_model(name: str) -> tuple[Path, Path]:
    """Download ``hf://OWNER/NAME`` or ``hf://OWNER/NAME@REVISION``; return the config and the weights.

    Raises:
        UserError: the name has another form, a file does not exist, or the config is not accepted.
    """
    from huggingface_hub import snapshot_download

    match = re.fullmatch(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not match:
        raise UserError(f"model: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, got {name}")
    try:
        folder = snapshot_download(match[1], revision=match[2], allow_patterns=[CONFIG, PROGRAM, WEIGHTS])
    except Exception as error:  # huggingface_hub's errors have several base classes
        raise UserError(f"{name} cannot be downloaded: {one_line(error)}") from error
    config, weights = Path(folder, CONFIG), Path(folder, WEIGHTS)
    if not (config.is_file() and weights.is_file()):
        got = ", ".join(sorted(os.listdir(folder)))
        raise UserError(f"{name}: expected the files {CONFIG} and {WEIGHTS}, got {got}; no program is run")
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
        model: from :func:`dcnzoo.openmmlab.runs.build.build_model`.
        repository: ``OWNER/NAME``.
        metrics: result of ``detector.evaluate``, for the model card.
        data: the data on which it was trained and evaluated, for the model card.
        private, revision, token: see ``huggingface_hub.HfApi``.

    Returns:
        The name for :func:`dcnzoo.load`.

    Raises:
        UserError: the config cannot be written as data: the detector has classes of your own.
    """
    from huggingface_hub import HfApi

    try:
        config = json_config.write(cast(Any, model.cfg))
    except ValueError as error:
        raise UserError(
            f"push_to_hub: expected a detector of the classes in mmdet, mmcv and dcnzoo, got {error}; a "
            "repository contains no programs: publish the file of dcnzoo export"
        ) from error
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder, CONFIG), config)
        meta, api = {"dataset_meta": getattr(model, "dataset_meta", {})}, HfApi(token=token)
        write_bytes(Path(folder, WEIGHTS), to_safetensors(model.state_dict(), meta))
        write_text(Path(folder, CARD), card(model, repository, metrics or {}, data))
        api.create_repo(repository, private=private, exist_ok=True)
        outdated = [CONFIG, PROGRAM]  # of an earlier version
        api.upload_folder(repo_id=repository, folder_path=folder, revision=revision, delete_patterns=outdated)
    return f"{PREFIX}{repository}@{revision}" if revision else PREFIX + repository


def card(model: nn.Module, repository: str, metrics: Mapping[str, float], data: str) -> str:
    """Return the model card."""
    classes = ", ".join(map(str, getattr(model, "dataset_meta", {}).get("classes", ()))) or "unknown"
    text = (
        "---\nlibrary_name: dcnzoo\npipeline_tag: object-detection\ntags: [deformable-convolution]\n---\n\n"
        f"# {repository.rpartition('/')[2]}\n\n"
        f"{type(model).__name__}, classes: {classes}. Data: {data or 'not stated'}.\n\n"
        f'```python\nimport dcnzoo\n\ndetector = dcnzoo.load("{PREFIX}{repository}")\n```\n'
    )
    head = "\n| metric | value |\n| --- | --- |\n" if metrics else ""
    return text + head + "".join(f"| {name} | {value:.3f} |\n" for name, value in metrics.items())
