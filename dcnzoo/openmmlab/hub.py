"""Detectors in repositories of the Hugging Face Hub: a config as data, safetensors and a model card.

Requires huggingface_hub.
"""

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from torch import nn

from dcnzoo.openmmlab.checkpoints import to_safetensors
from dcnzoo.openmmlab.config import json_config
from dcnzoo.utils.errors import UserError, one_line, printable, typed, user_errors
from dcnzoo.utils.files import write_bytes, write_text
from dcnzoo.version import __version__

PREFIX = "hf://"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PROGRAM = "config.py"  # in place of CONFIG, for detectors with other classes than OpenMMLab's and dcnzoo's
# what a detector needs of a program
KEYS = ("model", "test_pipeline", "test_dataloader", "default_scope", "custom_imports")


def fetch_model(name: str, trust_config: bool = False) -> tuple[Path, Path]:
    """Download a detector; return its config and its weights.

    Args:
        name: ``hf://OWNER/NAME``, or ``hf://OWNER/NAME@REVISION``.
        trust_config: accept a repository with a ``config.py`` in place of ``config.json``. Reading it **runs
            the code in it**.

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
    config, program, weights = (folder / file for file in files)
    if config.is_file():
        json_config.read(config, f"{name}: {CONFIG}")
    elif program.is_file():
        config = program
        if trust_config is not True:
            raise UserError(
                f"{name}: expected {CONFIG}, got {PROGRAM}, a program. Only if you trust its author: "
                "trust_config=True runs it"
            )
    for file in (config, weights):
        if not file.is_file():
            raise UserError(f"{name}: expected the file {file.name}, found none")
    return config, weights


@typed
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
    """
    from huggingface_hub import HfApi

    api, meta = HfApi(token=token), getattr(model, "dataset_meta", {})
    cfg: Any = model.cfg
    try:
        config, text = CONFIG, json_config.write(cfg)
    except ValueError as error:
        config, text = PROGRAM, _program(cfg)
        line = f"push_to_hub: wrote {PROGRAM}, which dcnzoo.load refuses without trust_config=True: {error}"
        print_log(printable(line), "current", logging.WARNING)
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder, config), text)
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


def _program(cfg: Config) -> str:
    return Config({key: value for key, value in cfg.to_dict().items() if key in KEYS}).pretty_text


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
