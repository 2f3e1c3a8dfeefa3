"""Record offsets and modulation of deformable layers during training: scalars and warnings."""

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dcnzoo.layers.statistics import modulation_statistics, offset_statistics, track_offsets, tracks_offsets
from dcnzoo.openmmlab.weights import without_wrapper

OFFSETS = ("mean_abs", "max_abs", "outside")
MODULATION = ("modulation_mean", "modulation_near_0", "modulation_near_1")


@HOOKS.register_module()
class OffsetStatisticsHook(Hook):
    """Measure every deformable layer's offsets and modulation, and warn if offsets explode.

    Every ``interval`` iterations, the hook sends these values of each layer to the visualizer as
    ``offsets/<figure>/<layer>`` (``scalars.json``, and TensorBoard if its backend is enabled):

    - ``mean_abs``, ``max_abs``: of the offsets, in pixels of the layer's input;
    - ``outside``: share of the samples that their offsets move outside the map
      (:class:`dcnzoo.layers.OffsetStatistics`);
    - ``modulation_mean``, ``modulation_near_0``, ``modulation_near_1``
      (:class:`dcnzoo.layers.ModulationStatistics`); not for DCN v1, which has no modulation.

    The values are those of one batch on the main process and, for a layer that runs several times per
    iteration, those of the last run. Layers of other packages and the packs of deformable RoI pooling are not
    measured. A warning names a layer whose offsets explode. It is repeated only after they have recovered.

    Args:
        interval: number of iterations between two measurements.
        max_mean: warn if the mean absolute offset, in pixels, exceeds this or is NaN.
        max_outside: warn if the share of samples outside the map exceeds this.
    """

    priority = "NORMAL"

    def __init__(self, interval: int = 50, max_mean: float = 32.0, max_outside: float = 0.5) -> None:
        if interval < 1:
            raise ValueError(f"OffsetStatisticsHook: interval: expected an integer ≥ 1, got {interval!r}")
        self.interval = interval
        self.max_mean = max_mean
        self.max_outside = max_outside
        self._measures = False  # whether this process has layers to measure
        self._astray = set[str]()  # layers whose offsets explode

    def before_train(self, runner: Runner) -> None:
        tracks = any(map(tracks_offsets, runner.model.modules()))
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
        mean, outside = figures["mean_abs"], figures["outside"]
        is_astray = not mean <= self.max_mean or outside > self.max_outside  # NaN too
        if is_astray and layer not in self._astray:
            runner.logger.warning(
                f"iteration {runner.iter + 1}: {layer}: offsets explode: mean |offset| {mean:.3g} pixels, "
                f"expected ≤ {self.max_mean:g} (max_mean); {outside:.0%} of the samples outside the map, "
                f"expected ≤ {self.max_outside:.0%} (max_outside). Lower the offsets' learning rate "
                "(paramwise_cfg=dict(dcn_offset_lr_mult=0.1)) or bound them (offset_limit of the layer)"
            )
        (self._astray.add if is_astray else self._astray.discard)(layer)
