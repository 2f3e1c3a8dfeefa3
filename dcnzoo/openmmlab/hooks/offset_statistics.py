"""Record offsets and modulation of deformable layers during training: a CSV, scalars and warnings."""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from dcnzoo.layers.offsets import TracksOffsets, modulation_statistics, offset_statistics, track_offsets
from dcnzoo.utils.files import write_text

FILE_NAME = "offset_statistics.csv"
OFFSETS = ("mean_abs", "max_abs", "outside")
MODULATION = ("modulation_mean", "modulation_near_0", "modulation_near_1")
COLUMNS = ("iter", "layer", *OFFSETS, *MODULATION)


@HOOKS.register_module()
class OffsetStatisticsHook(Hook):
    """Measure every deformable layer's offsets and modulation, and warn about abnormal values.

    Every ``interval`` iterations, the hook appends one row per layer to ``work_dir/offset_statistics.csv``
    and sends the same values to the visualizer as ``offsets/<figure>/<layer>`` (``scalars.json``, and
    TensorBoard if its backend is enabled):

    - ``mean_abs``, ``max_abs``: of the offsets, in pixels of the layer's input;
    - ``outside``: share of the samples that their offsets move outside the map
      (:class:`dcnzoo.layers.OffsetStatistics`);
    - ``modulation_mean``, ``modulation_near_0``, ``modulation_near_1``
      (:class:`dcnzoo.layers.ModulationStatistics`); empty for DCN v1, which has no modulation.

    The values are those of one batch on the main process and, for a layer that runs several times per
    iteration, those of the last run. A resumed training continues the file and drops the rows after its
    checkpoint; a new training replaces the file. Other iterations have no overhead. Layers of other packages
    and the packs of deformable RoI pooling are not measured.

    A warning names the layer and a remedy. It is repeated only after the layer has recovered.

    Args:
        interval: in iterations.
        max_mean: warn if the mean absolute offset, in pixels, exceeds this or is NaN.
        max_outside: warn if the share of samples outside the map exceeds this.
        min_modulation: warn if a layer's mean modulation falls below this. A layer that has never been above
            it does not warn: DCNv4's modulation starts near 0.
    """

    priority = "NORMAL"

    def __init__(
        self,
        interval: int = 50,
        max_mean: float = 32.0,
        max_outside: float = 0.5,
        min_modulation: float = 0.02,
    ) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"OffsetStatisticsHook: interval: expected an integer ≥ 1, got {interval!r}")
        limits = dict(max_mean=max_mean, max_outside=max_outside, min_modulation=min_modulation)
        for name, limit in limits.items():
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 0:
                raise ValueError(f"OffsetStatisticsHook: {name}: expected a number ≥ 0, got {limit!r}")
        self.interval = interval
        self.max_mean = max_mean
        self.max_outside = max_outside
        self.min_modulation = min_modulation
        self._file: Path | None = None  # None: this process does not measure
        self._astray: set[tuple[str, str]] = set()  # (layer, what) with an active warning
        self._modulating: set[str] = set()  # layers that have been above min_modulation

    def before_train(self, runner: Runner) -> None:
        self._file = None
        if not is_main_process():
            return
        if not any(isinstance(module, TracksOffsets) for module in _bare(runner).modules()):
            runner.logger.warning(
                "OffsetStatisticsHook: expected a model with deformable layers that predict their offsets, "
                "found none; nothing will be recorded"
            )
            return
        self._file = Path(runner.work_dir) / FILE_NAME
        kept = [row for row in read_statistics(self._file) if int(row["iter"]) <= runner.iter]
        write_text(self._file, _lines([dict(zip(COLUMNS, COLUMNS, strict=True)), *kept]))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        if self._file is not None and self.every_n_train_iters(runner, self.interval):
            track_offsets(_bare(runner))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        if self._file is None or not self.every_n_train_iters(runner, self.interval):
            return
        model = _bare(runner)
        offsets, modulation = offset_statistics(model), modulation_statistics(model)
        track_offsets(model, enabled=False)
        rows, scalars = [], {}
        for layer, statistics in offsets.items():
            figures = dict(zip(OFFSETS, statistics, strict=True))
            if layer in modulation:
                figures.update(zip(MODULATION, modulation[layer], strict=True))
            rows.append({"iter": runner.iter + 1, "layer": layer, **figures})
            scalars.update({f"offsets/{name}/{layer}": value for name, value in figures.items()})
            self._watch(runner, layer, figures)
        with self._file.open("a", encoding="utf-8", newline="") as file:
            file.write(_lines(rows))  # one write: a killed process truncates at most the last line
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def _watch(self, runner: Runner, layer: str, figures: dict[str, float]) -> None:
        mean, outside = figures["mean_abs"], figures["outside"]
        factor = figures.get("modulation_mean", math.inf)
        if factor >= self.min_modulation:
            self._modulating.add(layer)
        slower = "lower the offsets' learning rate (paramwise_cfg=dict(dcn_offset_lr_mult=0.1))"
        bound = f"{slower} or bound them (offset_limit of the layer)"
        findings = {
            "mean": (
                not mean <= self.max_mean,  # NaN too
                f"offsets explode: mean |offset| {mean:.3g} pixels, expected ≤ {self.max_mean:g} "
                f"(max_mean); {bound}",
            ),
            "outside": (
                outside > self.max_outside,
                f"offsets explode: {outside:.0%} of the samples outside the map, expected ≤ "
                f"{self.max_outside:.0%} (max_outside); {bound}",
            ),
            "modulation": (
                layer in self._modulating and not factor >= self.min_modulation,
                f"modulation has collapsed: mean factor {factor:.3g}, expected ≥ {self.min_modulation:g} "
                f"(min_modulation), the layer is nearly switched off; {slower}",
            ),
        }
        for what, (astray, text) in findings.items():
            if not astray:
                self._astray.discard((layer, what))
            elif (layer, what) not in self._astray:
                self._astray.add((layer, what))
                runner.logger.warning(f"iteration {runner.iter + 1}: {layer}: {text}")


def read_statistics(file: str | Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file of the hook, without a truncated last line. A missing file has no rows.

    Values are strings; ``modulation_…`` is '' for layers without a mask.
    """
    file = Path(file)
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    for row in csv.DictReader(io.StringIO(whole)):
        if tuple(row) == COLUMNS and None not in row.values() and row["iter"].isdecimal():
            yield row


def _lines(rows: list[dict]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return buffer.getvalue()


def _bare(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
