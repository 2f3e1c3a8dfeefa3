"""Which trainings number their batches; see :class:`dcnzoo.openmmlab.hooks.seeds.NumberedBatches`."""

from mmdet.datasets.transforms import CachedMixUp, CachedMosaic
from mmengine.config import Config, ConfigDict
from mmengine.runner import IterBasedTrainLoop

from dcnzoo.openmmlab.config.tree import class_of, dicts


def number_batches(cfg: Config) -> None:
    """Let a training by iterations number its batches, unless its pipeline keeps earlier pictures."""
    loop, loader = cfg.get("train_cfg") or {}, cfg.get("train_dataloader")
    kind = loop.get("type", "EpochBasedTrainLoop" if loop.get("by_epoch", True) else "IterBasedTrainLoop")
    if not (issubclass(class_of({"type": kind}) or object, IterBasedTrainLoop) and isinstance(loader, dict)):
        return
    batches = loader.get("batch_sampler")
    classes = [class_of(node) for _, node in dicts(loader)]
    keeps_pictures = any(each and issubclass(each, CachedMosaic | CachedMixUp) for each in classes)
    if keeps_pictures or not (isinstance(loader.get("sampler"), dict) and isinstance(batches, dict | None)):
        return
    numbered = {"type": "NumberedBatches", "batches": batches, "drop_last": loader.pop("drop_last", False)}
    loader["batch_sampler"] = ConfigDict(numbered)
