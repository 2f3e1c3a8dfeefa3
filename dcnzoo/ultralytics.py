"""Training of Ultralytics YOLO detectors with deformable layers. This module imports Ultralytics."""

from typing import Any, ClassVar

from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer

from dcnzoo.layers.convert import Where, to_deformable

__all__ = ["DeformableTrainer"]


class DeformableTrainer(DetectionTrainer):
    """Ultralytics' trainer of detectors, with the convolutions that ``where`` selects made deformable::

        class Trainer(DeformableTrainer):
            where = "model.[68].m.*.m.*.cv2.conv"  # the last two stages of YOLO11's backbone

        YOLO("yolo11n.pt").train(trainer=Trainer, data="data.yaml", epochs=100)

    The network is converted before the weights are loaded: weights of a plain network and of a converted one
    both load. For several GPUs, the subclass must be in a module that a new process can import: Ultralytics
    starts processes that import the trainer by its name.

    Attributes:
        where: the convolutions, as in :func:`dcnzoo.to_deformable`. Offsets are limited to 8 pixels.

    Raises:
        ValueError: ``where`` is not set or selects no convolution.
    """

    where: ClassVar[Where | None] = None

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Build the network, convert it, and load the weights of a network, if given."""
        if self.where is None:
            expected = "a pattern for names of convolutions, as a class attribute"
            raise ValueError(f"{type(self).__name__}: where: expected {expected}, got None")
        model = super().get_model(cfg, verbose=verbose)
        to_deformable(model, self.where, offset_limit=8)
        if weights is not None:
            model.load(weights)
        return model
