"""Hooks for mmengine's Runner. Importing the package registers them.

Every run has the hooks in ``DEFAULT_HOOKS`` and those that ``runs/execute.py`` registers.
"""

from dcnzoo.openmmlab.hooks.batches import NumberedBatches as NumberedBatches
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

# key in default_hooks → hook; there, a config can replace a hook, or switch it off with None
DEFAULT_HOOKS = {
    "epoch_seed": {"type": "EpochSeedHook"},
    "finite_loss": {"type": "FiniteLossHook"},
    "progress": {"type": "ProgressHook"},
    "buffers": {"type": "BroadcastBuffersHook"},
    "mask_size": {"type": "MaskSizeHook"},
    "checkpoint": {"type": "AtomicCheckpointHook", "interval": 1},
}
