"""Hooks for mmengine's Runner. Importing the package registers them.

Every run has those of ``DEFAULT_HOOKS``, and those that ``runs/execute.py`` gives to its runner.
"""

from dcnzoo.openmmlab.hooks.channels_last import ChannelsLastHook as ChannelsLastHook
from dcnzoo.openmmlab.hooks.checkpoint import AtomicCheckpointHook as AtomicCheckpointHook
from dcnzoo.openmmlab.hooks.checkpoint import AtomicLocalBackend as AtomicLocalBackend
from dcnzoo.openmmlab.hooks.finite_loss import FiniteLossHook as FiniteLossHook
from dcnzoo.openmmlab.hooks.load_checkpoint import LoadCheckpointHook as LoadCheckpointHook
from dcnzoo.openmmlab.hooks.offset_statistics import OffsetStatisticsHook as OffsetStatisticsHook
from dcnzoo.openmmlab.hooks.progress import ProgressHook as ProgressHook
from dcnzoo.openmmlab.hooks.resume import ResumeHook as ResumeHook
from dcnzoo.openmmlab.hooks.seeds import EpochSeedHook as EpochSeedHook
from dcnzoo.openmmlab.hooks.summary import SummaryHook as SummaryHook
from dcnzoo.openmmlab.hooks.validation import BroadcastBuffersHook as BroadcastBuffersHook
from dcnzoo.openmmlab.hooks.validation import MaskSizeHook as MaskSizeHook
from dcnzoo.openmmlab.hooks.validation import PlateauEarlyStoppingHook as PlateauEarlyStoppingHook

# by their names in default_hooks, where a config replaces them, or switches them off with None
DEFAULT_HOOKS = {
    "epoch_seed": {"type": "EpochSeedHook"},
    "finite_loss": {"type": "FiniteLossHook"},
    "progress": {"type": "ProgressHook"},
    "buffers": {"type": "BroadcastBuffersHook"},
    "mask_size": {"type": "MaskSizeHook"},
    "checkpoint": {"type": "AtomicCheckpointHook", "interval": 1},
}
