"""Settings of a model that nobody reads, found by watching one loss and one prediction on a small picture."""

from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from dcnzoo.openmmlab.config.errors import UNKNOWN, require_none
from dcnzoo.openmmlab.config.read import is_published_key
from dcnzoo.openmmlab.config.tree import dicts
from dcnzoo.openmmlab.config.watched import WITH_FILES, Asked, unread, watched
from dcnzoo.openmmlab.runs.rehearse import without_trace
from dcnzoo.openmmlab.runs.separate_run import separate_run
from dcnzoo.utils.errors import one_line
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.text import cut

_LARGEST = 500e6  # bytes of parameters
_SIZES = (96, 320)  # pixels; some families need more than the smallest one
_THRESHOLDS = ("score_thr", "conf_thr")


def require_read(cfg: Config, model: nn.Module) -> None:
    """Warn of settings that nobody reads; raise UserError for a name similar to one that is read."""
    require_none(unread_of_model(cfg, model), cfg.filename)


def unread_of_model(cfg: Config, model: nn.Module) -> list[Finding]:
    """Return the settings of a model that nobody reads; an error if one with a similar name is read.

    A second model is built, runs, and is thrown away. Random generators, scopes and logs stay as they were.

    Args:
        cfg: of the training.
        model: that has been built; a large one is not built again.
    """
    if sum(each.numel() * each.element_size() for each in model.parameters()) > _LARGEST:
        return [_not_watched("the model has more than 500 MB of parameters")]
    errors = []
    with separate_run(), without_trace(), DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        for size in _SIZES:
            asked: Asked = {}
            try:
                _run(_settings(cfg, asked), size)
                return [*unread(cfg, "model", asked)]
            except Exception as error:  # of a family that needs other data
                errors.append(error)
    text = one_line(errors[-1])
    match = UNKNOWN.search(text)
    for path, node in dicts(cfg.model.to_dict(), "model"):
        if match and match[2] in node and not is_published_key(path.rpartition(".")[2], match[2]):
            return [Finding(f"{path}.{match[2]}", text, "key")]  # of a function, such as nms
    return [_not_watched(text)]


def _not_watched(reason: str) -> Finding:
    text = f"settings that nobody reads are not searched for: {cut(reason, 200)}"
    return Finding("model", text, stops=False)


def _settings(cfg: Config, asked: Asked) -> Any:
    settings = cfg.model.to_dict()
    if cfg.get("data_preprocessor"):
        settings.setdefault("data_preprocessor", cfg.data_preprocessor.to_dict())
    for _, node in dicts(settings):
        node.update({key: None for key in WITH_FILES if key in node})
        node.update({key: 0.0 for key in _THRESHOLDS if isinstance(node.get(key), float)})
    return watched(settings, "model", asked)


def _run(settings: Any, size: int) -> None:
    """Compute one loss and one prediction on pictures of ``size`` × ``size`` pixels."""
    from mmdet.testing import demo_mm_inputs

    model: Any = MODELS.build(settings)
    for training in (True, False):
        model.train(training)
        shapes = [[3, size, size]] * (1 + training)
        data = demo_mm_inputs(len(shapes), shapes, num_classes=2, with_mask=True, with_semantic=True)
        for sample in data["data_samples"]:
            sample.gt_instances.labels.zero_()  # the only one that each head has
        data = model.data_preprocessor(data, training)
        with torch.no_grad():
            model(**data, mode="loss" if training else "predict")
