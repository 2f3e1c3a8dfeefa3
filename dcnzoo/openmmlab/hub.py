"""Detectors in repositories of the Hugging Face Hub: a config of literals, safetensors and a model card.

Requires huggingface_hub.
"""

import ast
import pprint
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import Registry, root
from safetensors.torch import save
from torch import nn

from dcnzoo.openmmlab.checkpoints import names_as_metadata
from dcnzoo.openmmlab.config_check import dicts
from dcnzoo.openmmlab.setup import setup
from dcnzoo.utils.errors import UserError, one_line, user_errors
from dcnzoo.utils.files import write_bytes, write_text
from dcnzoo.utils.text import few
from dcnzoo.version import __version__

PREFIX = "hf://"
CONFIG, WEIGHTS, CARD = "config.py", "model.safetensors", "README.md"
OWN_IMPORTS = ("dcnzoo.models", "dcnzoo.openmmlab.hooks", "dcnzoo.openmmlab.datasets")
# what a detector needs of its config
KEYS = ("model", "test_pipeline", "test_dataloader", "default_scope", "custom_imports")


def fetch_model(name: str, trust_config: bool = False) -> tuple[Path, Path]:
    """Download a detector; return its config and its weights.

    Args:
        name: ``hf://OWNER/NAME``, or ``hf://OWNER/NAME@REVISION``.
        trust_config: accept a config that imports modules or names classes outside of OpenMMLab's
            registries. Building it then **runs the code that it names**.

    Raises:
        UserError: the name is not of this form, the repository or a file does not exist, or the config is not
            accepted.
    """
    from huggingface_hub import hf_hub_download

    match = re.fullmatch(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not match:
        raise UserError(f"model: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, got {name}")
    try:
        files = [hf_hub_download(match[1], file, revision=match[2]) for file in (CONFIG, WEIGHTS)]
    except Exception as error:  # huggingface_hub's errors have several base classes
        raise UserError(f"{name}: {CONFIG} or {WEIGHTS} cannot be downloaded: {one_line(error)}") from error
    config, weights = map(Path, files)
    if not trust_config and (reasons := list(code_in(config.read_text(encoding="utf-8")))):
        raise UserError(
            f"{name}: {CONFIG}: expected classes of OpenMMLab and dcnzoo only, got {few(reasons)}; "
            "trust_config=True accepts it, and runs that code"
        )
    return config, weights


def code_in(text: str) -> Iterator[str]:
    """Yield what a config runs beside OpenMMLab's and dcnzoo's classes; nothing is executed."""
    settings = {}
    try:
        for line in ast.parse(text).body:
            if not (isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)):
                yield f"line {line.lineno}: {ast.unparse(line)}"
            else:
                settings[line.targets[0].id] = ast.literal_eval(line.value)
    except (SyntaxError, ValueError) as error:  # not a literal
        yield one_line(error)
    if "{{" in text or "_base_" in settings:  # mmengine replaces the first and reads the second
        yield "another file"
    yield from foreign_types(settings)


def foreign_types(settings: dict) -> Iterator[str]:
    """Yield the imports of a config, and the types that are in none of OpenMMLab's registries.

    MMEngine builds ``type='os.system'`` by importing it, and mmcv evaluates the type of an NMS.
    """
    imports = settings.get("custom_imports") or {}
    for name in imports.get("imports", ()):
        if name not in OWN_IMPORTS:
            yield f"custom_imports {name}"
    from mmcv import ops

    setup()  # registers dcnzoo's classes
    registries = [each for each in vars(root).values() if isinstance(each, Registry)]
    children = [child for registry in registries for child in registry.children.values()]
    for child in children:
        child.import_from_location()
    scopes = {"", *(registry.scope for registry in (*registries, *children))}
    known = {"", *ops.__all__}.union(*(registry.module_dict for registry in (*registries, *children)))
    for path, node in dicts(settings):
        kind = node.get("type", "")  # RoI layers and NMS, of mmcv.ops, have no registry
        scope, _, name = kind.rpartition(".") if isinstance(kind, str) else ("?", "", "")
        if scope not in scopes or name not in known:
            yield f"{path}.type {kind}"


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
        model: from :func:`dcnzoo.openmmlab.detector.build`.
        repository: ``OWNER/NAME``.
        metrics: result of ``detector.evaluate``, for the model card.
        data: the data on which it was trained and evaluated, for the model card.
        private, revision, token: see ``huggingface_hub.HfApi``.

    Returns:
        The name for :func:`dcnzoo.load`, ``hf://OWNER/NAME``.
    """
    from huggingface_hub import HfApi

    api, meta = HfApi(token=token), getattr(model, "dataset_meta", {})
    cfg: Any = model.cfg
    settings = {key: value for key, value in cfg.to_dict().items() if key in KEYS}
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        lines = [f"{name} = {pprint.pformat(value, width=110)}\n" for name, value in settings.items()]
        write_text(Path(folder, CONFIG), "\n".join(lines))
        write_bytes(Path(folder, WEIGHTS), save(weights, names_as_metadata({"dataset_meta": meta})))
        write_text(Path(folder, CARD), card(model, repository, metrics or {}, data))
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=f"Detector, written by dcnzoo {__version__}",
        )
    return PREFIX + repository


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
