"""Hooks for mmengine's Runner. Importing the package registers them."""

from dcnzoo.openmmlab.hooks.channels_last import ChannelsLastHook
from dcnzoo.openmmlab.hooks.checkpoint import AtomicCheckpointHook, AtomicLocalBackend
from dcnzoo.openmmlab.hooks.finite_loss import FiniteLossHook
from dcnzoo.openmmlab.hooks.offset_statistics import OffsetStatisticsHook
from dcnzoo.openmmlab.hooks.progress import ProgressHook
from dcnzoo.openmmlab.hooks.schedule import ScheduleHook
from dcnzoo.openmmlab.hooks.seeds import EpochSeedHook
from dcnzoo.openmmlab.hooks.summary import SummaryHook
from dcnzoo.openmmlab.hooks.validation import BroadcastBuffersHook, PlateauEarlyStoppingHook

__all__ = [
    "AtomicCheckpointHook",
    "AtomicLocalBackend",
    "BroadcastBuffersHook",
    "ChannelsLastHook",
    "EpochSeedHook",
    "FiniteLossHook",
    "OffsetStatisticsHook",
    "PlateauEarlyStoppingHook",
    "ProgressHook",
    "ScheduleHook",
    "SummaryHook",
]
