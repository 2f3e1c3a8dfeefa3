"""Compare the classes of models, data sets and files; find the settings that depend on their number."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from torch import Size

from dcnzoo.openmmlab.checkpoints import class_names
from dcnzoo.openmmlab.config.tree import LOADERS, class_of, dicts, inner_data_sets
from dcnzoo.utils.errors import UserError, printable
from dcnzoo.utils.signatures import arguments
from dcnzoo.utils.text import counted

# settings that hold a number of classes: all objects; panoptic "things"; panoptic "stuff", such as sky
ALL, THINGS, STUFF = "num_classes", "num_things_classes", "num_stuff_classes"
OF_OBJECTS = (ALL, THINGS)
# in these parts, num_classes counts something else: object or background, identities, semantic classes
OTHERS = {"rpn_head", "reid", "semantic_head"}


def data_sets(cfg: Mapping) -> Iterator[tuple[str, Mapping, dict]]:
    """Yield every data set's loader, config and declared metainfo."""
    for loader in LOADERS:
        outer = cfg[loader].get("dataset") if isinstance(cfg.get(loader), Mapping) else None
        if isinstance(outer, Mapping):
            for dataset in inner_data_sets(outer):
                yield loader, dataset, declared_metainfo(dataset)


def declared_metainfo(dataset: Mapping) -> dict:
    """Return the metainfo of a data set's class and config, without building the data set."""
    load = getattr(class_of(dataset), "_load_metainfo", dict)
    info = dataset.get("metainfo")
    return load(info if isinstance(info, Mapping) else {})


def metainfo(dataset: Mapping) -> dict:
    """Return a data set's metainfo. Build the data set only if necessary: that may read or generate files."""
    dataset = next(inner_data_sets(dataset))
    declared = declared_metainfo(dataset)
    if declared.get("classes") or "type" not in dataset or DATASETS.get(dataset["type"]) is None:
        return declared
    return DATASETS.build({**dataset, "lazy_init": True}).metainfo  # this class reads its classes from a file


def names_of_model(cfg: Config, meta: dict) -> dict:
    """Return names and colours of the classes: from the checkpoint if it has them, else from the data set."""
    of_file = {key: value for key, value in class_names(meta).items() if value is not None}
    if names := of_file.get("classes"):
        of_file["classes"] = tuple(map(printable, names))
    tested = (dataset for loader, dataset, _ in data_sets(cfg) if loader == "test_dataloader")
    merged = {**metainfo(next(tested, {})), **of_file}
    return {**merged, "palette": merged.get("palette") or "random"}


def numbers(model: Mapping) -> Iterator[tuple[str, dict, str, int]]:
    """Yield path, dictionary, key and value of each setting of a model that is a number of classes.

    The value may be the default of the part's class, as for mask heads. Detectors with a language model are
    left out: they use words instead of a fixed number of classes.
    """
    if "language_model" in model:
        return
    for path, node in dicts(model, "model"):
        parameters = arguments(class_of(node))
        for key in (THINGS, STUFF) if OTHERS & {*path.split(".")} else (ALL, THINGS, STUFF):
            value = node.get(key, parameters[key].default if key in parameters else None)
            if isinstance(value, int) and not isinstance(value, bool):
                yield path, node, key, value


def set_number(model: Mapping, before: int, after: int) -> None:
    """Set the number of classes in a model's config, and the weights of classes in losses.

    Args:
        before: the present number; only settings with this value change.
    """
    for _, node, key, value in [*numbers(model)]:
        if value == before and key in OF_OBJECTS:
            node[key] = after
    for _, node in dicts(model):
        weight = node.get("class_weight")
        if isinstance(weight, list | tuple) and len(weight) == before + 1:
            node["class_weight"] = [*weight[:1] * after, weight[-1]]  # the last one is the background


def parameters_by_number(model: Mapping) -> dict[str, Size]:
    """Build a model with one class more than in its config; return the shapes of all parameters.

    Parameters whose shape differs from that in the model itself depend on the number of classes. The result
    is empty if the config has no number of classes.

    Args:
        model: the model's config.
    """
    values = {value for _, _, key, value in numbers(model) if key in OF_OBJECTS}
    settings = copy.deepcopy(model)
    for value in sorted(values, reverse=True):
        set_number(settings, value, value + 1)
    if not values:
        return {}
    with torch.random.fork_rng():
        try:
            with torch.device("meta"):
                other = MODELS.build(copy.deepcopy(settings))
        except Exception:  # some backbones compute with values, which meta tensors do not have
            other = MODELS.build(settings)
    return {name: value.shape for name, value in other.state_dict().items()}


def require_equal(expected: Sequence, got: Sequence, source: object, order_only: bool = False) -> None:
    """Raise UserError if classes differ from the expected ones: a label is only a position in this list.

    Args:
        source: of ``got``, for the message.
        order_only: accept other names, which may be synonyms; refuse only equal names in another order.

    Raises:
        UserError: the number, a name or the order differs.
    """
    expected, got = [*map(str, expected)], [*map(str, got)]
    if expected == got or (order_only and sorted(expected) != sorted(got)):
        return
    if len(expected) != len(got):
        raise UserError(f"{source}: expected {counted(len(expected), 'classes')}, got {len(got)}")
    number = next(n for n, name in enumerate(got) if name != expected[n])
    text = f"expected the classes in the same order, whose class {number} is {expected[number]}"
    raise UserError(f"{source}: {text}, got {got[number]}")


def require_order(loader: Mapping | None, names: object, source: str | os.PathLike) -> None:
    """Raise an error if the file of a model has the classes of a data loader in another order.

    Args:
        loader: settings of the data loader, if there is one.
        names: of the classes in the file; None if it has none.
    """
    data = declared_metainfo(next(inner_data_sets(loader["dataset"]))).get("classes") if loader else None
    if isinstance(data, list | tuple) and isinstance(names, list | tuple):
        require_equal(data, names, source, order_only=True)


def require_names(model: Mapping, names: Sequence[str]) -> None:
    """Raise ValueError unless there are as many names as a model's config has classes."""
    counts = {value for path, _, key, value in numbers(model) if "head" in path and key in OF_OBJECTS}
    if names and counts and len(names) not in counts:
        expected = " or ".join(map(str, sorted(counts)))
        raise ValueError(f"classes: expected the names of {expected} classes, got {len(names)}")
