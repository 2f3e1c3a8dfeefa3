"""Read a config: its file and bases, options, names at the top level."""

import ast
import copy
import os
import re
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config, config
from mmengine.config.utils import MODULE2PACKAGE

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.config import json_config
from dcnzoo.openmmlab.config.tree import RUNNER_KEYS, dicts
from dcnzoo.openmmlab.config.type_names import use_names
from dcnzoo.utils.errors import UserError, one_line
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.folders import mim_folder
from dcnzoo.utils.marks import is_own, mark
from dcnzoo.utils.text import few, nearest

# MMDetection 2's key → the key of version 3
OLD_KEYS = {
    "data": "train_dataloader, val_dataloader and test_dataloader",
    "optimizer": "optim_wrapper.optimizer",
    "optimizer_config": "optim_wrapper",
    **dict.fromkeys(("lr_config", "momentum_config"), "param_scheduler"),
    "total_epochs": "train_cfg.max_epochs",
    "total_iters": "train_cfg.max_iters",
    "runner": "train_cfg",
    "evaluation": "val_evaluator and train_cfg.val_interval",
    "checkpoint_config": "default_hooks.checkpoint",
    "log_config": "default_hooks.logger and visualizer",
    "fp16": "optim_wrapper.type='AmpOptimWrapper' and optim_wrapper.loss_scale",
    "seed": "randomness.seed",
    "deterministic": "randomness.deterministic",
    "resume_from": "resume=True and load_from",
    "auto_resume": "resume=True",
    "gpus": "the environment variable CUDA_VISIBLE_DEVICES",
}
# arguments of steps of pipelines that must be tuples, which JSON and YAML do not have
SIZES = {"scale", "scales", "img_scale", "crop_size", "size", "ratio_range"}
# parts of a config's text: the start of a dictionary, its type, a setting with numbers, a bracket
_TOKEN = re.compile(
    r"(\w+)\s*=\s*dict\(|type='(\w+)'|(\w+)=(-?\d[\d.e-]*|[\[(][-\d., \ne]+[\])])(?=[,)\s])|([()])"
)
PIPELINES = {"train_pipeline", "val_pipeline", "test_pipeline"}  # variables, with names like tta_pipeline


def read_config_file(path: str | os.PathLike, cfg_options: Mapping[str, object] | None = None) -> Config:
    """Read a config and merge ``cfg_options``. Errors name the file and the line.

    Raises:
        UserError: the config or one of its bases cannot be read, or it has no place for an option.
        FileNotFoundError: one of its bases does not exist.
    """
    try:
        is_data = json_config.is_json_config(path)
        cfg = json_config.read(path) if is_data else use_names(Config.fromfile(path))
    except (UserError, FileNotFoundError):
        raise
    except (Exception, SystemExit) as error:
        name, line = str(path), getattr(error, "lineno", None)
        # mmengine executes the text without a file name; mmengine's own frames have it
        for frame, number in traceback.walk_tb(error.__traceback__):
            code, filename = frame.f_code, frame.f_locals.get("filename")
            if "mmengine" in code.co_filename and isinstance(filename, str | os.PathLike):
                name = str(filename)
            elif code.co_filename in ("", name):
                line = number
        where = f"{name}, line {line}" if line else name
        text = error.msg if isinstance(error, SyntaxError) else one_line(error)
        raise UserError(f"config: {where}: {type(error).__name__}: {text}") from error
    for key_path, node in dicts(cfg._cfg_dict):
        if "pipeline" in key_path:
            node.update({key: as_tuple(node[key]) for key in SIZES & node.keys()})
    _merge(cfg, {} if cfg_options is None else cfg_options, path)
    return cfg


def _merge(cfg: Config, options: Mapping[str, object], path: str | os.PathLike) -> None:
    """Change the settings that the options name, one after the other. Errors name the config's path."""
    if not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
        raise UserError(f"cfg_options: expected a mapping from keys to values, got {options!r}")
    mistakes = [*_variables_among(options, cfg)]
    if "launcher" in options:  # RunOptions replaces it
        mistakes.append(f"launcher: expected launcher={options['launcher']} as an option of its own")
    for key, value in options.items():
        problem = _without_place(key, cfg)
        try:
            if not problem:
                cfg.merge_from_dict({key: copy.deepcopy(value)})  # it removes _delete_
        except AttributeError:  # of mmengine, which merges elements of lists like dictionaries
            problem = "expected whole lists of numbers or texts, got one element"
        except (KeyError, TypeError) as error:
            problem = one_line(error)
        if problem:
            mistakes.append(f"{key}: {problem}")
    if mistakes:
        raise UserError(*(f"{path}: cfg_options: {text}" for text in mistakes))


def _without_place(key: str, cfg: Config) -> str:
    """Return why the config has no place for an option, or an empty text."""
    node: object = cfg._cfg_dict
    parts = key.split(".")
    if not all(parts):
        return f"expected names between the dots, got {key!r}"
    if parts[0] == "custom_imports":
        return "expected it in a config, which imports the modules while it is read"
    for number, part in enumerate(parts):
        where = ".".join(parts[:number])
        if isinstance(node, list | tuple):
            if not (part.isdecimal() and int(part) < len(node)):
                return f"expected an index of {where} from 0 to {len(node) - 1}, got {part}"
            node = node[int(part)]
        elif not isinstance(node, Mapping):
            return f"expected settings as {where}, got {node!r}"
        elif part in node:
            node = node[part]
        elif "type" in node or parts[0] != "model" or is_published_key(parts[number - 1], part):
            return ""
        else:  # no class refuses it
            close = nearest(part, node, 0.8)
            return f"expected {close}, got an unknown key" if close else ""
    return ""


def _variables_among(options: Mapping[str, object], cfg: Config) -> Iterator[str]:
    """Yield an error for each option that changes a variable: the settings have already copied its value."""
    names = {key.split(".")[0] for key in options} - runner_keys(cfg)
    for name in sorted(names):
        paths: list[str] = []
        if name in cfg:
            changed = Config({name: copy.deepcopy(cfg[name])})
            changed.merge_from_dict({key: options[key] for key in options if key.split(".")[0] == name})
            paths = [*read_again(cfg, changed.to_dict())]
        elif name in PIPELINES:  # a variable of the config from which this one was written
            settings = runner_settings(cfg)
            paths = [path for path, key, _ in settings if key == "pipeline" and name.endswith(key)]
        if paths:
            yield f"{name}: expected {few(paths)}, got a variable, whose value was copied before"


def as_tuple(value: object) -> object:
    """Return a list of numbers as a tuple, also inside a list."""
    if not isinstance(value, list):
        return value
    return tuple(value) if all(isinstance(each, int | float) for each in value) else [*map(as_tuple, value)]


@cache
def published_folders() -> list[Path]:
    """Return the folders of the configs that OpenMMLab's packages and dcnzoo install."""
    folders = [mim_folder(package) for package in MODULE2PACKAGE]
    return [Path(os.path.realpath(folder / "configs")) for folder in folders if folder]


@cache
def is_published_key(outer: str, key: str, *names: str) -> bool:
    """Whether a published config of an installed package has a key in a dictionary with a name.

    Args:
        names: of classes; the config has one of them as a type.
    """
    for text in _published_texts(key):
        is_like = not names or any(re.search(rf"\btype=['\"]?{name}\b", text) for name in names)
        if is_like and key in _keys_in(ast.parse(text), outer):
            return True
    return False


@cache
def published_in(key: str) -> set[str]:
    """Return the names at the top level of published configs that are a key, or whose values have it."""
    nodes = (node for text in _published_texts(key) for node in ast.parse(text).body)
    names = ((name, node) for node in nodes for name, _ in _items(node))
    return {name for name, node in names if name == key or key in _keys_in(node, name)}


@cache
def published_numbers() -> dict[tuple[str, str], list[float]]:
    """Return the numbers of each setting in published configs, by its type or dictionary, and its name."""
    numbers = defaultdict[tuple[str, str], list[float]](list)
    for text in _published().values():
        owners = [""]  # of the brackets that are open
        for name, kind, key, value, bracket in _TOKEN.findall(text):
            if name or bracket == "(":
                owners.append(name or owners[-1])
            elif kind:
                owners[-1] = kind
            elif bracket and len(owners) > 1:
                owners.pop()
            for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", value):
                numbers[owners[-1], key].append(float(number))
    return numbers


def published_models(file: str) -> Iterator[Mapping]:
    """Yield the models of published configs whose backbone has a file of weights, perhaps a copy of it."""
    name = _stem(file)  # some configs break the line inside an address
    for path, text in _published().items():
        if file and re.search(rf"(?<!\w){re.escape(name)}(-[0-9a-f]{{8}})?(\.pth)?['\"]", text):
            model = _published_model(path)
            if not isinstance(model, Mapping):
                continue
            own = weights_of_backbone(model)[0]
            if own == file or ("://" not in file and _stem(own) == name):
                yield model


def _stem(file: str) -> str:
    """Return the name of a file of weights, without its ending and checksum."""
    return re.sub(r"(-[0-9a-f]{8})?(\.pth)?$", "", file.rpartition("/")[2])


@cache
def _published_model(path: Path) -> object:  # two checks compare it
    return Config.fromfile(path, import_custom_modules=False).get("model")


def weights_of_backbone(model: Mapping) -> tuple[str, Mapping]:
    """Return the file of weights of a model's backbone, empty without one, and the settings that name it."""
    backbone = model.get("backbone")
    init = backbone.get("init_cfg") if isinstance(backbone, Mapping) else None
    return (str(init["checkpoint"]), init) if isinstance(init, Mapping) and "checkpoint" in init else ("", {})


def _published_texts(word: str) -> Iterator[str]:
    """Yield the texts of the published configs that contain a word."""
    pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
    yield from (text for text in _published().values() if word in text and re.search(pattern, text))


@cache
def _published() -> dict[Path, str]:
    files = (file for folder in published_folders() for file in sorted(folder.rglob("*.py")))
    return {file: file.read_text(encoding="utf-8") for file in files}


def _keys_in(tree: ast.AST, outer: str) -> Iterator[str]:
    """Yield the keys of the dictionaries that a name or key is set to, and of those inside."""
    for node in ast.walk(tree):
        for name, value in _items(node):
            if name == outer:
                yield from (key for inner in ast.walk(value) for key, _ in _items(inner))


def _items(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Call):
        yield from ((str(each.arg), each.value) for each in node.keywords)
    elif isinstance(node, ast.Dict):
        yield from ((str(getattr(k, "value", "")), v) for k, v in zip(node.keys, node.values, strict=True))
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        yield node.targets[0].id, node.value


@dataclass(frozen=True)
class File:
    """The names at the top level that one file of a config sets, those that it reads, and all its words.

    It is published if it is in an installed package, or a copy of one that is, as in a clone of MMDetection.
    """

    path: str
    text: str
    stored: set[str]
    read: set[str]
    words: set[str]

    @property
    def is_published(self) -> bool:
        path = Path(os.path.realpath(self.path))
        if any(path.is_relative_to(folder) for folder in published_folders()):
            return True
        return any(
            file.name == path.name and text.strip() == self.text for file, text in _published().items()
        )


def files(text: str) -> Iterator[File]:
    """Yield the files of a config: its bases come first.

    Args:
        text: ``Config.text``, in which a line with its path precedes the text of each file.
    """
    texts: list[tuple[str, list[str]]] = [("/.py", [])] if not text.startswith("/") else []
    for line in text.splitlines():
        if re.fullmatch(r"/.*\.(py|json|ya?ml)", line) and (not texts or os.path.isfile(line)):
            texts.append((line, []))  # not a line of a text in the config
        else:
            texts[-1][1].append(line)
    for path, lines in texts:
        part = "\n".join(lines)
        stored, read = {*re.findall(r"(?m)^\s*[\"']?(\w+)[\"']?\s*:", part)}, set()
        if path.endswith(".py"):
            nodes = [*ast.walk(ast.parse(re.sub(r"\{\{[^{}]*\}\}", "0", part)))]
            used = [node for node in nodes if isinstance(node, ast.Name)]
            read = {name.id for name in used if isinstance(name.ctx, ast.Load)}
            stored = {name.id for name in used if isinstance(name.ctx, ast.Store)}
        words = {*re.findall(r"\w+", part)}
        yield File(path, part.strip(), stored, read | {*re.findall(r"\b_base_\.(\w+)", part)}, words)


def words_in(cfg: Config, are_published: bool) -> set[str]:
    """Return the words in those files of a config that are published ones, or in the others."""
    return {
        word for file in files(cfg.text or "") if file.is_published == are_published for word in file.words
    }


@contextmanager
def assigning(values: Mapping[str, object]) -> Iterator[None]:
    """Context in which every file of a config assigns these values to these names."""

    def parse(*args: Any, **kwargs: Any) -> ast.AST:
        tree = ast.parse(*args, **kwargs)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Assign) or node.col_offset or len(node.targets) > 1:
                continue
            for name in node.targets:
                if isinstance(name, ast.Name) and name.id in values:
                    node.value = ast.parse(repr(values[name.id]), mode="eval").body
        return ast.fix_missing_locations(tree)

    with Changes() as changes:
        changes.set(config, "ast", SimpleNamespace(**{**vars(ast), "parse": parse}))
        yield


def read_again(cfg: Config, values: Mapping[str, object]) -> Iterator[str]:
    """Yield the path of each setting that these values of variables change."""
    before = use_names(Config.fromfile(cfg.filename, import_custom_modules=False))
    with assigning(values):
        after = use_names(Config.fromfile(cfg.filename, import_custom_modules=False))
    for key in runner_keys(before) & before.keys() & after.keys():
        yield from _differences(before[key], after[key], key)


def own_settings(cfg: Config) -> list[str]:
    """Return the paths of the settings that differ from the published config on which a config is based."""
    for file in reversed([*files(cfg.text or "")]):
        if file.is_published and os.path.isfile(file.path):
            base = use_names(Config.fromfile(file.path, import_custom_modules=False))
            if "model" in base:
                keys = sorted(runner_keys(cfg) & cfg.keys() & base.keys())
                return [path for key in keys for path in _differences(base[key], cfg[key], key)]
    return []


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yield the paths of settings that differ; of a dictionary with another type, that of the type."""
    keys: Iterable[Any] = ()
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [key for key in {**old, **new} if key != "_scope_"]  # mmengine adds scopes to some copies
        if old.get("type") != new.get("type"):
            keys = ["type"]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        keys = range(len(old)) if any(isinstance(each, Mapping | list) for each in old) else ()
    if not keys and old != new:
        yield path
    for key in keys:
        before, after = (each.get(key) if isinstance(each, Mapping) else each[key] for each in (old, new))
        yield from _differences(before, after, f"{path}.{key}")


def variables_without_effect(cfg: Config) -> Iterator[Finding]:
    """Yield the settings that have copied a variable of a base before a config has set it again.

    It is a warning if the file that sets the variable reads it too: it may be meant for these lines only.
    """
    parts = [*files(cfg.text)]
    own = [part for part in parts if not part.is_published]
    names = {name for part in own for name in part.stored & cfg.keys()} - runner_keys(cfg)
    if "read_base" not in cfg.text:
        names = {name for name in names if sum(name in part.stored for part in parts) > 1}
    settings = cfg.to_dict()
    for name in sorted(name for name in names if _is_literal(settings[name])):
        last = next(part for part in reversed(own) if name in part.stored)
        is_read = any(name in part.read for part in parts[parts.index(last) :])
        changed: dict[str, list[str]] = {}
        try:
            for path in read_again(cfg, {name: settings[name]}):
                changed.setdefault(path.partition(".")[0], []).append(path)
            if not (changed or is_read):
                base = next(part for part in parts if name in part.stored)
                if Config.fromfile(base.path, import_custom_modules=False).get(name) != settings[name]:
                    text = "expected a setting, got a variable on which none depends"
                    yield Finding(name, text, stops=False)
        except Exception:  # of a base that computes with a value of another type
            continue
        for paths in changed.values():
            text = f"expected the value of {name}, which the base has copied before this config sets it"
            yield Finding(paths[0], f"{text}; set {few(paths)}", stops=name not in last.read)


def replaced_hooks(cfg: Config) -> Iterator[Finding]:
    """Yield the hooks of a base that a config with a list of its own leaves out."""
    parts, own = [*files(cfg.text)], cfg.get("custom_hooks")
    if len(parts) > 1 and "custom_hooks" in parts[-1].stored and isinstance(own, list) and own:
        base = Config.fromfile(parts[-2].path, import_custom_modules=False).get("custom_hooks") or []
        kinds = [str(each["type"]) for each in base]
        if gone := [kind for kind in kinds if kind not in [str(each.get("type")) for each in own]]:
            yield Finding("custom_hooks", f"leaves out {few(gone)} of {parts[-2].path}", stops=False)


def _is_literal(value: object) -> bool:
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError, TypeError, RecursionError):
        return False


def runner_keys(cfg: Config) -> set[str]:
    """Return the names that the runner reads: ``data_preprocessor`` only if the model has none."""
    model = cfg.get("model")
    has_own = isinstance(model, Mapping) and "data_preprocessor" in model
    return RUNNER_KEYS - ({"data_preprocessor"} if has_own else set())


def runner_settings(cfg: Config) -> list[tuple[str, str, object]]:
    """Return path, key and value of all settings in the parts of a config that the runner uses."""
    parts = {key: cfg[key] for key in cfg.keys() & runner_keys(cfg)}
    return [(f"{path}.{key}"[1:], key, node[key]) for path, node in dicts(parts) for key in node]


def is_written(cfg: Config) -> bool:
    """Whether a training has written the config, and nobody has changed it."""
    file = Path(cfg.filename or "")
    return is_own(file, mark("config", file.name))


def wrong_top_level_keys(cfg: Config, options: Collection[str] = ()) -> Iterator[Finding]:
    """Yield keys of MMDetection 2, and keys that are neither the runner's nor variables that are used."""
    parts, settings = [*files(cfg.text)], runner_settings(cfg)
    stored = {name for part in parts if not part.is_published for name in part.stored}
    read = {name for part in parts for name in part.read}
    last = parts[-1].stored if parts else ()
    used = runner_keys(cfg)
    values = [value for _, _, value in settings] + [cfg[key] for key in cfg.keys() & used]
    copies = [value for value in values if isinstance(value, Mapping | list | tuple) and value]
    copies = [value for value in copies if not all(isinstance(each, int | float) for each in value)]  # sizes
    has_bases = len(parts) > 1 or "read_base" in cfg.text
    for key in sorted({*cfg} - used - read):
        new, value, old = key in options and key not in stored, cfg[key], OLD_KEYS.get(key, "")
        names = (key, old.rpartition(".")[2].partition(" ")[0])
        is_single = not isinstance(value, Mapping | list | tuple)
        same = {path: each for path, name, each in settings if name in names}
        is_copied = value in copies or any(_has_items(each, value) for each in copies)
        if is_copied or value in same.values() or (cfg.text and key not in stored and not new):
            continue  # of a dump; of a published base, or of one in MMEngine's new style
        if old and (new or _is_old(key, value)):
            # a key that is left over in a base is no reason to refuse a config that trains
            text, stops = f"expected version 3's {old}, got a key of MMDetection 2", new or key in last
            yield Finding(key, text, "key", stops=stops)
        elif new:
            expected = nearest(key, used, 0.6) or "a key of mmengine's runner"
            yield Finding(key, f"expected {expected}, got an unknown key", "key")
        elif key in options:
            yield Finding(key, "expected a setting, got a name that nothing in the config uses", stops=False)
        elif key.startswith("_") or is_written(cfg):
            continue
        # a dump has the variables of its bases
        elif has_bases or (same and is_single) or not (value in values or key in published_in(key)):
            known = used | (read & cfg.keys()) | {name for _, name, _ in settings}
            places = [*same] or [f"{key} in {part}" for part in sorted(published_in(key) & used)]
            setting = few(places) if places else nearest(key, known, 0.7)
            text = "nothing in the config uses it"
            yield Finding(key, f"expected {setting}; {text}" if setting else text, stops=False)


def _has_items(settings: object, items: object) -> bool:
    """Whether a dictionary of settings contains all items of another one, at least two."""
    if not (isinstance(settings, Mapping) and isinstance(items, Mapping) and len(items) > 1):
        return False
    return all(key in settings and settings[key] == items[key] for key in items)


def _is_old(key: str, value: object) -> bool:
    """Whether a value may be that of a key of MMDetection 2: only ``resume_from`` is a text."""
    return isinstance(value, str) if key == "resume_from" else not isinstance(value, str | None)
