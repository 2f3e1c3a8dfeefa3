"""The options of runs. :mod:`dcnzoo.openmmlab.runs.options` writes them into a config."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import expanded

LOGGERS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend"}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of every run.

    Attributes:
        work_dir: folder of logs and results (default: the config's, else ``work_dirs/`` + the config's name).
        device: ``"cpu"``, ``"cuda:1"``, or ``"auto"``: a GPU if there is one, else the CPU.
        channels_last: on a CPU, compute in channels-last order, if the model is MMDetection's.
        allow_partial: if the weights do not fit the model, load those that fit.
        verbose: print mmengine's whole log.
        launcher: launcher of a distributed run, such as ``pytorch``, or ``none``.
    """

    work_dir: str | os.PathLike[str] | None = None
    device: str | torch.device = "auto"
    channels_last: bool = True
    allow_partial: bool = False
    verbose: bool = False
    launcher: str = "none"

    @property
    def torch_device(self) -> str | torch.device:
        """The device of torch's models; see :func:`dcnzoo.openmmlab.runs.device.require_device`."""
        return self.device


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """The options of a training; None leaves the config's setting.

    Attributes:
        epochs: number of epochs; the schedule is scaled with it.
        batch_size: images per iteration and process.
        lr: learning rate of the optimizer.
        patience: stop after this number of validations without a better result.
        amp: use mixed precision.
        auto_scale_lr: scale the learning rate by the batch size.
        logger: ``tensorboard`` or ``wandb``.
        seed: of all random numbers. On a CPU, two trainings with one seed give the same weights.

    Raises:
        UserError: a value is out of range.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    patience: int | None = None
    amp: bool = False
    auto_scale_lr: bool = False
    logger: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "seed"):
            value, least = getattr(self, name), int(name != "seed")
            if value is not None and not (type(value) is int and least <= value < 2**32):
                raise UserError(f"{name}: expected an integer ≥ {least}, got {value!r}")
        if self.lr is not None and not (isinstance(self.lr, int | float) and 0 < self.lr < math.inf):
            raise UserError(f"lr: expected a positive number, got {self.lr!r}")
        if self.logger is not None and self.logger not in LOGGERS:
            raise UserError(f"logger: expected tensorboard or wandb, got {self.logger!r}")


@dataclass(frozen=True, kw_only=True)
class TestOptions(RunOptions):
    """The options of a test.

    Attributes:
        metrics: ``bbox``, ``segm`` or ``proposal`` (default: the config's).
        out: file for the predictions: ``.pkl``, or ``.json`` in COCO's format.
        format_only: write ``out`` without evaluating it.
        show_dir: folder for images with drawn detections.
        show_score_thr: draw detections above this score (default: 0.3).
        tta: merge the detections of the image and its mirror image.
        unsafe_load: load weights from a file that contains more; this **runs any code in the file**.
        exported: a file of ``dcnzoo export`` in place of the model.
        backend: runtime of the exported file (default: the one for its ending).

    Raises:
        UserError: an option would have no effect in combination with the others.
    """

    metrics: Sequence[str] = ()
    out: str | os.PathLike[str] | None = None
    format_only: bool = False
    show_dir: str | os.PathLike[str] | None = None
    show_score_thr: float | None = None
    tta: bool = False
    unsafe_load: bool = False
    exported: Path | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.out is not None and not str(self.out).endswith((".pkl", ".pickle", ".json")):
            raise UserError(f"out: expected a name that ends in .pkl or .json, got {self.out}")
        if self.format_only and (self.metrics or not self.as_json):
            raise UserError("format_only: expected out=FILE.json, without metrics")
        if self.show_score_thr is not None and self.show_dir is None:
            raise UserError("show_score_thr: expected show_dir as well, got none")
        if self.exported is None and self.backend is not None:
            raise UserError(f"backend: expected none with a file of weights, got {self.backend}")
        of_weights = {"tta": self.tta, "channels_last": not self.channels_last}
        of_weights |= {"allow_partial": self.allow_partial, "unsafe_load": self.unsafe_load}
        if self.exported is not None and (refused := [name for name in of_weights if of_weights[name]]):
            text = f"expected the default with {self.exported}, got {getattr(self, refused[0])}"
            raise UserError(f"{refused[0]}: {text}")

    @property
    def torch_device(self) -> str | torch.device:
        return "auto" if self.exported else self.device  # the runtime of an exported file has one of its own

    @property
    def as_json(self) -> bool:
        return str(self.out).endswith(".json")

    def files(self) -> list[Path]:
        """List the files of the predictions."""
        if self.out is None:
            return []
        out = expanded(self.out)
        endings = (".bbox.json", ".segm.json") if self.as_json else (out.suffix,)
        return [out.with_suffix(ending) for ending in endings]
