"""The index of models, with all entries of dcnzoo's and then MMDetection's metafiles, and their weights.

Both packages contain ``.mim/configs/*/metafile.yml`` in OpenMMLab's format. dcnzoo's metafiles add the source
of each result:

- ``Published:`` and the name of the publisher in a model's entry; or
- ``Measured: {Machine: …, Date: …, Command: …}`` in a result.
"""

import dataclasses
import difflib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import yaml

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.fetch import fetch, verify
from dcnzoo.utils.files import expanded, require_exists, write_bytes
from dcnzoo.utils.folders import cache_folder, mim_folder
from dcnzoo.utils.formats import EXPORTED, PICTURES, VIDEOS

CONFIGS = (".py", ".json", ".yaml", ".yml")
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast


class UnknownModelError(UserError):
    """No model has this name."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Results of one task on one data set.

    Attributes:
        metrics: such as ``{"box AP": 41.4}`` in percent.
        source: ``published (MMDetection)``, or ``measured (machine, date, command)``.
        published: whether others have published it.
    """

    task: str
    dataset: str
    metrics: Mapping[str, float]
    source: str
    published: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A config with its metadata.

    Attributes:
        name: of the config, without ``.py``.
        package: of the config, ``dcnzoo`` or ``mmdet``.
        aliases: other names: in the metafile, and in MMDetection 2.x.
        weights: addresses, or files in the package; empty if there are none.
        metadata: entries of the metafile (``Training Memory (GB)``, ``Epochs``, …).
        licence: of the weights; empty if unknown.
    """

    name: str
    package: str
    config: Path
    collection: str
    aliases: tuple[str, ...]
    weights: tuple[str, ...]
    results: tuple[Result, ...]
    metadata: Mapping[str, object]
    paper: Mapping[str, str]
    licence: str

    @property
    def id(self) -> str:
        """The name by which other configs inherit from it: ``mmdet::dcn/….py``."""
        return f"{self.package}::{self.config.parent.name}/{self.config.name}"

    def metrics(self, source: str | None = None) -> dict[str, float]:
        """Return all results, or those of one source. Of several data sets, the first takes precedence."""
        chosen = [result for result in self.results if source in (None, result.source)]
        return {k: v for result in reversed(chosen) for k, v in result.metrics.items()}

    def sources(self) -> list[str]:
        return list(dict.fromkeys(result.source for result in self.results))


@functools.cache
def models() -> tuple[Model, ...]:
    """Return all models, dcnzoo's first.

    If both packages have a config of the same name, only dcnzoo's is listed.

    Raises:
        ModuleNotFoundError: MMDetection is not installed.
    """
    if mim_folder("mmdet") is None:
        raise ModuleNotFoundError("zoo: expected MMDetection to be installed, got none", name="mmdet")
    ours = _models_of("dcnzoo")
    names = {model.name for model in ours}
    return (*ours, *(model for model in _models_of("mmdet") if model.name not in names))


@functools.cache
def _models_of(package: str) -> tuple[Model, ...]:
    folder = mim_folder(package)
    if folder is None:
        return ()
    found: dict[tuple[str, tuple[str, ...]], Model] = {}
    for metafile in sorted(folder.glob("configs/*/metafile.yml")):
        content = yaml.load(metafile.read_text(encoding="utf-8"), _YAML)  # nosec B506  # a safe loader
        if isinstance(content, list):  # one of MMDetection's metafiles has no headings
            content = {"Models": content}
        collections = {entry["Name"]: entry for entry in content.get("Collections", [])}
        for entry in content.get("Models", []):
            model = _model(package, folder, metafile, entry, collections)
            found.setdefault((model.name, model.weights), model)  # MMDetection lists two models twice
    return tuple(found.values())


def _model(package: str, folder: Path, metafile: Path, entry: dict, collections: dict) -> Model:
    config = folder / unquote(entry["Config"])  # MMDetection's paths may be escaped (gn%2Bws) or outdated
    config = config if config.is_file() else metafile.parent / config.name
    collection = collections.get(entry.get("In Collection", ""), {})
    paper = entry.get("Paper") or collection.get("Paper")
    results = (each for each in entry.get("Results") or () if each.get("Metrics"))
    return Model(
        name=config.stem,
        package=package,
        config=config,
        collection=entry.get("In Collection", ""),
        aliases=tuple(sorted({entry["Name"], *_texts(entry.get("Alias"))} - {config.stem})),
        weights=tuple(each if "://" in each else str(folder / each) for each in _texts(entry.get("Weights"))),
        results=tuple(
            Result(
                task=each.get("Task", ""),
                dataset=each.get("Dataset", ""),
                metrics=each["Metrics"],
                source=_source(package, entry, each),
                published="Measured" not in each,
            )
            for each in results
        ),
        metadata=entry.get("Metadata") or {},
        paper=paper if isinstance(paper, dict) else {},
        licence=entry.get("License") or collection.get("License") or "",
    )


def _texts(value: str | list[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or ()


def _source(package: str, entry: dict, result: dict) -> str:
    if measured := result.get("Measured"):
        return f"measured ({measured['Machine']}, {measured['Date']}, {measured['Command']})"
    return f"published ({'MMDetection' if package == 'mmdet' else entry['Published']})"


def find(name: str) -> Model:
    """Find a model by its config's name, an alias, or ``mmdet::folder/config.py``.

    Raises:
        UnknownModelError: there is none; the message lists the closest names.
    """
    key, listed = name.removesuffix(".py"), models()[::-1]  # reversed: the first model takes precedence
    names: dict[str, Model] = {alias: model for model in listed for alias in model.aliases}
    names |= {model.name: model for model in listed}
    for model in (*_models_of("mmdet")[::-1], *listed):  # also MMDetection's models that dcnzoo replaces
        names[f"{model.package}::{model.name}"] = names[model.id.removesuffix(".py")] = model
    if key in names:
        return names[key]
    similar = [each for each in names if ("::" in each) == ("::" in key)]
    close = difflib.get_close_matches(key, similar, n=3, cutoff=0.5)
    hint = f"; the closest names: {', '.join(close)}" if close else "; `dcnzoo zoo list` lists all"
    raise UnknownModelError(f"{name}: expected the name of a model, or a file, found none{hint}")


def require_model(name: str) -> None:
    """Raise UserError if there is no such file, folder or name; torch and OpenMMLab are not imported."""
    path = expanded(name)
    if path.suffix.lower() in (*PICTURES, *VIDEOS) and os.path.isfile(path):
        raise UserError(f"model: expected a name in the zoo, a config or a work directory, got {name}")
    if "::" in name or "://" in name or os.path.exists(path):  # Path.exists raises if the name is too long
        return
    if len(path.parts) == 1 and path.suffix.lower() not in EXPORTED:
        find(name)
    else:
        require_exists(path, "model")


def search(words: Sequence[str]) -> list[Model]:
    """Find the models whose name, aliases, collection or paper contain every word, ignoring case."""

    def text(model: Model) -> str:
        return " ".join((model.id, *model.aliases, model.collection, *map(str, model.paper.values()))).lower()

    return [model for model in models() if all(word.lower() in text(model) for word in words)]


def local_file(weights: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the local file of weights of the zoo, downloaded if necessary: see :func:`download`."""
    if "://" in weights:
        return fetch(weights, folder or cache_folder())  # named as torch.hub and MMDetection do
    file = Path(weights)
    if not file.exists():
        raise UserError(
            f"{file}: expected weights, found none: they are in dcnzoo's repository, not in the wheel"
        )
    verify(file)
    if folder is None:
        return file
    copy = Path(folder) / file.name
    write_bytes(copy, file.read_bytes())
    return copy


def download(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Download the weights of a model to torch's cache or to ``folder``; return the path.

    Weights that are part of dcnzoo are used in place, or copied to ``folder``.

    Raises:
        UserError: the model is unknown or has no weights, or the download failed.
    """
    model = find(name)
    if len(model.weights) != 1:
        number = len(model.weights) or "none"
        raise UserError(f"{model.name}: expected one file of weights, found {number}")
    return local_file(model.weights[0], folder and expanded(folder))
