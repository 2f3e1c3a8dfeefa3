"""Record offsets and modulation of deformable layers during training: scalars and warnings."""

import math

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dcnzoo.layers.statistics import TracksOffsets, modulation_statistics, offset_statistics, track_offsets
from dcnzoo.openmmlab.weights import without_wrapper

OFFSETS = ("mean_abs", "max_abs", "outside")
MODULATION = ("modulation_mean", "modulation_near_0", "modulation_near_1")


@HOOKS.register_module()
class OffsetStatisticsHook(Hook):
    """Measure every deformable layer's offsets and modulation, and warn about abnormal values.

    Every ``interval`` iterations, the hook sends these values of each layer to the visualizer as
    ``offsets/<figure>/<layer>`` (``scalars.json``, and TensorBoard if its backend is enabled):

    - ``mean_abs``, ``max_abs``: of the offsets, in pixels of the layer's input;
    - ``outside``: share of the samples that their offsets move outside the map
      (:class:`dcnzoo.layers.OffsetStatistics`);
    - ``modulation_mean``, ``modulation_near_0``, ``modulation_near_1``
      (:class:`dcnzoo.layers.ModulationStatistics`); not for DCN v1, which has no modulation.

    The values are those of one batch on the main process and, for a layer that runs several times per
    iteration, those of the last run. Layers of other packages and the packs of deformable RoI pooling are not
    measured. A warning names the layer and a remedy. It is repeated only after the layer has recovered.

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
        if interval < 1:
            raise ValueError(f"OffsetStatisticsHook: interval: expected an integer ≥ 1, got {interval!r}")
        self.interval = interval
        self.max_mean = max_mean
        self.max_outside = max_outside
        self.min_modulation = min_modulation
        self._astray: dict[str, set[str]] = {}  # layer → kinds of active warnings
        self._modulating: set[str] = set()  # layers that have been above min_modulation

    def before_train(self, runner: Runner) -> None:
        tracks = any(isinstance(module, TracksOffsets) for module in runner.model.modules())
        if not tracks:
            runner.logger.warning("OffsetStatisticsHook: found no layer that predicts offsets to record")
        self._measures = tracks and is_main_process()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        if self._measures and self.every_n_train_iters(runner, self.interval):
            track_offsets(runner.model)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        if not self._measures or not self.every_n_train_iters(runner, self.interval):
            return
        model = without_wrapper(runner.model)
        offsets, modulation = offset_statistics(model), modulation_statistics(model)
        track_offsets(model, enabled=False)
        scalars = {}
        for layer, statistics in offsets.items():
            figures = dict(zip(OFFSETS, statistics, strict=True))
            if layer in modulation:
                figures.update(zip(MODULATION, modulation[layer], strict=True))
            scalars.update({f"offsets/{name}/{layer}": value for name, value in figures.items()})
            self._watch(runner, layer, figures)
        if scalars:
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def _watch(self, runner: Runner, layer: str, figures: dict[str, float]) -> None:
        factor = figures.get("modulation_mean", math.inf)
        if factor >= self.min_modulation:
            self._modulating.add(layer)
        slower = "lower the offsets' learning rate (paramwise_cfg=dict(dcn_offset_lr_mult=0.1))"
        bound = f"{slower} or bound them (offset_limit of the layer)"
        texts = {}
        if not figures["mean_abs"] <= self.max_mean:  # NaN too
            got = f"mean |offset| {figures['mean_abs']:.3g} pixels, expected ≤ {self.max_mean:g} (max_mean)"
            texts["mean"] = f"offsets explode: {got}; {bound}"
        if figures["outside"] > self.max_outside:
            got = (
                f"{figures['outside']:.0%} of the samples outside the map, expected ≤ {self.max_outside:.0%}"
            )
            texts["outside"] = f"offsets explode: {got} (max_outside); {bound}"
        if layer in self._modulating and not factor >= self.min_modulation:
            got = f"mean factor {factor:.3g}, expected ≥ {self.min_modulation:g} (min_modulation)"
            texts["modulation"] = f"modulation has collapsed: {got}; {slower}"
        for kind in texts.keys() - self._astray.get(layer, set()):
            runner.logger.warning(f"iteration {runner.iter + 1}: {layer}: {texts[kind]}")
        self._astray[layer] = {*texts}
