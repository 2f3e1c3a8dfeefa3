"""Hooks for mmengine's Runner. Importing the package registers them.

Every run has those of ``DEFAULT_HOOKS``, and those that ``runs/execute.py`` gives to its runner.
"""

from dcnzoo.openmmlab.hooks.channels_last import ChannelsLastHook
from dcnzoo.openmmlab.hooks.checkpoint import AtomicCheckpointHook, AtomicLocalBackend
from dcnzoo.openmmlab.hooks.finite_loss import FiniteLossHook
from dcnzoo.openmmlab.hooks.load_checkpoint import LoadCheckpointHook
from dcnzoo.openmmlab.hooks.offset_statistics import OffsetStatisticsHook
from dcnzoo.openmmlab.hooks.progress import ProgressHook
from dcnzoo.openmmlab.hooks.resume import ResumeHook
from dcnzoo.openmmlab.hooks.seeds import EpochSeedHook
from dcnzoo.openmmlab.hooks.summary import SummaryHook
from dcnzoo.openmmlab.hooks.validation import BroadcastBuffersHook, MaskSizeHook, PlateauEarlyStoppingHook

# by their names in default_hooks, where a config replaces them, or switches them off with None
DEFAULT_HOOKS = {
    "epoch_seed": {"type": "EpochSeedHook"},
    "finite_loss": {"type": "FiniteLossHook"},
    "progress": {"type": "ProgressHook"},
    "buffers": {"type": "BroadcastBuffersHook"},
    "mask_size": {"type": "MaskSizeHook"},
    "checkpoint": {"type": "AtomicCheckpointHook", "interval": 1},
}

__all__ = [
    "AtomicCheckpointHook",
    "AtomicLocalBackend",
    "BroadcastBuffersHook",
    "ChannelsLastHook",
    "EpochSeedHook",
    "FiniteLossHook",
    "LoadCheckpointHook",
    "MaskSizeHook",
    "OffsetStatisticsHook",
    "PlateauEarlyStoppingHook",
    "ProgressHook",
    "ResumeHook",
    "SummaryHook",
]
