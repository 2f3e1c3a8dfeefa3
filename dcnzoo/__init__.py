"""Deformable convolution for object detection.

``import dcnzoo`` imports neither torch nor OpenMMLab. It only adds an import finder after all others, which
provides ``mmcv._ext`` if mmcv has no compiled module (:mod:`dcnzoo.compat.mmcv`). :func:`provide` does the
same for compiled modules of other projects.
"""

import inspect
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcnzoo.compat import provide
from dcnzoo.compat.mmcv import provide_extension as _provide_extension
from dcnzoo.utils.errors import install_hint as _install_hint
from dcnzoo.version import __version__

if TYPE_CHECKING:
    import torch

    from dcnzoo.detect.detector import BaseDetector
    from dcnzoo.layers.convert import to_deformable
    from dcnzoo.ops import deform_conv2d
    from dcnzoo.zoo.testing import test
    from dcnzoo.zoo.training import train

__all__ = ["__version__", "deform_conv2d", "load", "provide", "test", "to_deformable", "train"]

_provide_extension()
_HOME = {
    "deform_conv2d": "ops",
    "to_deformable": "layers.convert",
    "train": "zoo.training",
    "test": "zoo.testing",
}
_MODULES = ("backbones", "data", "detect", "export", "layers", "models", "ops", "report", "zoo")


def __getattr__(name: str):
    # imported on access, because they import torch
    if name in _HOME:
        return getattr(import_module(f"dcnzoo.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"dcnzoo.{name}")
    raise AttributeError(f"module 'dcnzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})


@_install_hint()
def load(
    model: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    device: "str | torch.device" = "auto",
    score_threshold: float | None = None,
    channels_last: bool = True,
    precision: Literal["float32", "bf16"] = "float32",
    cfg_options: Mapping[str, object] | None = None,
    unsafe_load: bool = False,
    allow_partial: bool = False,
) -> "BaseDetector":
    """Load a detector with its weights::

        detector = dcnzoo.load("mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco")
        result = detector("street.jpg", score_threshold=0.7)
        result.boxes, result.labels, result.scores, result.masks, result.names
        result.save("out.jpg")

    Args:
        model: a name in the zoo (``dcnzoo zoo list``); a config file; a work directory of ``dcnzoo train``,
            or a checkpoint in it; ``hf://OWNER/NAME[@REVISION]``, a repository of the Hub that
            ``detector.push_to_hub`` wrote; or a file of ``dcnzoo export``: ``.onnx`` or ``.xml``.
        checkpoint: a file or an address with other weights; required for a config file.
        device: ``"cpu"``, ``"cuda:1"``, or ``"auto"``: a GPU if there is one, else the CPU.
        score_threshold: default of the detector's calls (default: 0.5 for R-CNN heads, 0.3 for others; an
            exported file has that of its detector).
        channels_last: on a CPU, compute in channels-last order, which is faster. Results differ by rounding.
        precision: ``"bf16"`` computes in bfloat16, except for the heads' last layers. This is faster on CPUs
            that multiply bfloat16, and changes scores and boxes a little (docs/performance.md). Of exported
            files, only those for OpenVINO (``.xml``) support it.
        cfg_options: settings to override, ``{"model.test_cfg.rcnn.score_thr": 0.3}``.
        unsafe_load: load a checkpoint that contains more than weights; this **runs any code in the file**.
        allow_partial: if the checkpoint does not fit the model, load the parameters that fit.

    Returns:
        A detector; see :meth:`dcnzoo.detect.detector.BaseDetector.__call__` for its calls. ``detector.model``
        is the ``nn.Module``, with its config in ``detector.model.cfg``.

    Raises:
        UserError: the model is unknown or has no weights, the device cannot be used, the download failed, or
            the checkpoint does not fit.
        ValueError, FileNotFoundError: an option is invalid; an exported file does not exist.
    """
    from dcnzoo.utils.formats import EXPORTED

    if score_threshold is not None and not score_threshold <= 1:  # nor NaN
        raise ValueError(f"score_threshold: expected a number of at most 1, got {score_threshold!r}")
    loading = {"unsafe_load": unsafe_load, "allow_partial": allow_partial}
    if str(model).endswith(EXPORTED):
        others = {"checkpoint": checkpoint, "cfg_options": cfg_options, **loading}
        others["channels_last"] = channels_last
        settings = {"device": device, "score_threshold": score_threshold, "precision": precision}
        return _load_exported(model, settings, others)

    from dcnzoo.zoo.index import require_model

    require_model(str(model))  # checked first: each of the next imports takes seconds
    from dcnzoo.openmmlab.runs.device import require_device

    require_device(device)
    from dcnzoo.openmmlab.detector import TorchDetector
    from dcnzoo.openmmlab.runs.build import build_model
    from dcnzoo.openmmlab.runs.recipe import Recipe
    from dcnzoo.zoo.source import resolve

    source = resolve(model, checkpoint)
    weights = source.read_weights()
    network = build_model(Recipe.read(source.config, cfg_options), weights, device=device, **loading)
    detector = TorchDetector(network, score_threshold, channels_last, precision)
    detector.name = Path(model).name
    return detector


def _load_exported(
    model: str | os.PathLike[str], settings: Mapping[str, Any], others: Mapping[str, object]
) -> "BaseDetector":
    """Open an exported file; the other arguments of :func:`load` must have their defaults."""
    from dcnzoo.detect.exported import ExportedDetector

    defaults = inspect.signature(load).parameters
    for name, value in others.items():
        if value not in (defaults[name].default, {}):
            raise ValueError(f"{name}: expected no value with an exported file")
    return ExportedDetector(model, **settings)
