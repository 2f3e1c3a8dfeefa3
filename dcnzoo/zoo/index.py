"""The index: every model of the metafiles that dcnzoo and MMDetection bring, ours first.

Both packages have a folder ``.mim`` with ``configs/*/metafile.yml``, whose form is OpenMMLab's. What
dcnzoo's add to it, so that it is always known whose figure a figure is:

- a model says ``Published: true``, or who published it; or
- a result says how it was measured: ``Measured: {Machine: …, Date: …, Command: …}``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from dcnzoo.openmmlab.packages import mim_folder
from dcnzoo.utils.errors import UserError

PACKAGES = ("dcnzoo", "mmdet")
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a tenth of the time
_HOSTS = {"download.openmmlab.com": "MMDetection"}


class UnknownModelError(UserError):
    """No model has this name."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Figures of one task on one data set.

    Attributes:
        metrics: such as ``{"box AP": 41.4}``, in percent, or ``"66.8 ± 2.2"`` of several runs.
        source: ``published (MMDetection)``, or ``measured (machine, date, command)``.
    """

    task: str
    dataset: str
    metrics: Mapping[str, float | str]
    source: str

    @property
    def published(self) -> bool:
        return self.source.startswith("published")


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A config with what is known about it.

    Attributes:
        name: the config's, without ``.py``.
        package: whose config it is, ``dcnzoo`` or ``mmdet``.
        aliases: other names of it: in the metafile, in MMDetection 2.x.
        weights: addresses, or files that come with the package; empty if there are none.
        metadata: as the metafile has it (``Training Memory (GB)``, ``Epochs``, …).
        licence: of the weights; empty if it is not known.
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
        """The name under which other configs inherit from it: ``mmdet::dcn/….py``."""
        return f"{self.package}::{self.config.parent.name}/{self.config.name}"

    def only_weights(self) -> str:
        """The address of its weights, or their file.

        Raises:
            UserError: there are none, or several files that make a model only together.
        """
        if len(self.weights) != 1:
            number = len(self.weights) or "none"
            raise UserError(f"{self.name}: expected one file of weights, found {number}")
        return self.weights[0]

    def metrics(self, source: str | None = None) -> dict[str, float | str]:
        """All its figures, or those of one source, the first data set's if there are several."""
        chosen = [result for result in self.results if source in (None, result.source)]
        return {k: v for result in reversed(chosen) for k, v in result.metrics.items()}

    @property
    def measured(self) -> bool:
        """Whether it has figures that were measured here."""
        return any(not result.published for result in self.results)

    def sources(self) -> list[str]:
        return list(dict.fromkeys(result.source for result in self.results))


@functools.cache
def models() -> tuple[Model, ...]:
    """All models, dcnzoo's first.

    A config of MMDetection's with the name of one of dcnzoo's is not listed twice: dcnzoo's answers
    to its other names, and takes over what it does not say itself about the same weights.

    Raises:
        UserError: MMDetection is not installed.
    """
    if mim_folder("mmdet") is None:
        raise UserError('expected MMDetection, whose metafiles are the index: pip install "./dcnzoo[mmdet]"')
    ours = {model.name: model for model in _models_of("dcnzoo")}
    theirs = []
    for model in _models_of("mmdet"):
        same = ours.get(model.name)
        if same is None:
            theirs.append(model)
            continue
        known = model.metadata if model.weights == same.weights else {}
        ours[model.name] = dataclasses.replace(
            same,
            aliases=tuple(dict.fromkeys((*same.aliases, *model.aliases))),
            metadata={**known, **same.metadata},
        )
    return (*ours.values(), *theirs)


@functools.cache
def _models_of(package: str) -> tuple[Model, ...]:
    folder = mim_folder(package)
    if folder is None:
        return ()
    found = {}
    for metafile in sorted(folder.glob("configs/*/metafile.yml")):
        content = yaml.load(metafile.read_text(encoding="utf-8"), _YAML)  # nosec B506  # a safe loader
        if isinstance(content, list):  # one of MMDetection's has no headings
            content = {"Models": content}
        collections = {entry["Name"]: entry for entry in content.get("Collections", [])}
        for entry in content.get("Models", []):
            model = _model(package, folder, metafile, entry, collections)
            if package == "dcnzoo" and any(model.name == name for name, _ in found):
                raise UserError(f"{metafile}: expected one entry for each config, found two for {model.name}")
            found.setdefault((model.name, model.weights), model)  # two of MMDetection's are there twice
    return tuple(found.values())


def _model(package: str, folder: Path, metafile: Path, entry: dict, collections: dict) -> Model:
    config = _config_path(folder, metafile, entry["Config"])
    weights = entry.get("Weights") or ()
    weights = (weights,) if isinstance(weights, str) else weights
    weights = tuple(each if "://" in each else str(folder / each) for each in weights)
    collection = entry.get("In Collection", "")
    paper = entry.get("Paper") or collections.get(collection, {}).get("Paper") or {}
    results = tuple(
        Result(
            result.get("Task", ""),
            result.get("Dataset", ""),
            result["Metrics"],
            _source(package, metafile, entry, result, weights),
        )
        for result in entry.get("Results") or ()
        if result.get("Metrics")
    )
    aliases = entry.get("Alias") or ()
    aliases = {entry["Name"], *((aliases,) if isinstance(aliases, str) else aliases)} - {config.stem}
    return Model(
        name=config.stem,
        package=package,
        config=config,
        collection=collection,
        aliases=tuple(sorted(aliases)),
        weights=weights,
        results=results,
        metadata=entry.get("Metadata") or {},
        paper=paper if isinstance(paper, dict) else {},
        licence=entry.get("License") or collections.get(collection, {}).get("License") or "",
    )


def _config_path(folder: Path, metafile: Path, written: str) -> Path:
    """Some of MMDetection's metafiles name a folder that was renamed, or escape its name (``gn%2Bws``)."""
    path = folder / unquote(written)
    return path if path.is_file() else metafile.parent / path.name


def _source(package: str, metafile: Path, entry: dict, result: dict, weights: Sequence[str]) -> str:
    measured, published = result.get("Measured"), entry.get("Published")
    if measured:
        return f"measured ({measured['Machine']}, {measured['Date']}, {measured['Command']})"
    if package == "mmdet":
        return "published (MMDetection)"
    if isinstance(published, str):
        return f"published ({published})"
    if published and weights:
        host = urlsplit(weights[0]).hostname
        return f"published ({_HOSTS.get(host, host)})"
    raise UserError(
        f"{metafile}: {entry['Name']}: expected Published: <by whom>, or of each result "
        "Measured: {Machine: …, Date: …, Command: …}"
    )


# Finding


def find(name: str) -> Model:
    """The model of that name: a config's, one of its aliases, or ``mmdet::folder/config.py``.

    Raises:
        UnknownModelError: there is none; its text has the closest names.
    """
    wanted = name.removesuffix(".py")
    if "::" in wanted:
        package, _, rest = wanted.partition("::")
        listed = [model for model in models() if model.package == package]
        candidates = [*listed, *(_models_of(package) if package in PACKAGES else ())]
        for model in candidates:
            if wanted == model.id.removesuffix(".py") or rest == model.name:
                return model
        names = {model.id: model for model in candidates or models()}
    else:
        by_alias = {alias: model for model in reversed(models()) for alias in model.aliases}
        names = {**by_alias, **{model.name: model for model in reversed(models())}}
        if wanted in names:
            return names[wanted]
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    hint = f"; the closest names: {', '.join(close)}" if close else "; `dcnzoo zoo list` lists all"
    raise UnknownModelError(f"{name}: expected the name of a model, found none{hint}")


def search(words: Sequence[str]) -> list[Model]:
    """The models in whose name, aliases, collection or paper every word occurs, whatever its case."""

    def text(model: Model) -> str:
        return " ".join(
            (model.name, model.id, *model.aliases, model.collection, *map(str, model.paper.values()))
        )

    patterns = [re.compile(re.escape(word), re.IGNORECASE) for word in words]
    return [model for model in models() if all(p.search(text(model)) for p in patterns)]
