"""Hooks for mmengine's Runner. Importing the package registers them.

Every run has the hooks in ``DEFAULT_HOOKS`` and those that ``runs/build.py`` registers. At each point of a
run, MMEngine calls them in the order of their ``priority``; with equal priorities, in the order in which they
were registered, which is that of the config, then that of ``runs/build.py``:

=========== ========================================= =====================================================
priority    hook                                      why there
=========== ========================================= =====================================================
HIGHEST     SanityHook of ``runs/sanity.py``          before anything is written
HIGHEST     DryRunHook of ``runs/dry_run.py``         before anything is written
VERY_HIGH   EpochSeedHook                             before another hook draws random numbers
VERY_HIGH   ChannelsLastHook                          before the first step
VERY_HIGH   LoadCheckpointHook                        before EMAHook copies the weights
VERY_HIGH   WorkDirHook                               the config is there before the first checkpoint
HIGH        FiniteLossHook                            a NaN loss reaches neither averages nor checkpoints
NORMAL      MMEngine's EMAHook and others, the user's
NORMAL      OffsetStatisticsHook
LOW         BroadcastBuffersHook                      after EMAHook exchanges the weights
VERY_LOW    AtomicCheckpointHook                      MMEngine's place for it
VERY_LOW    ProgressHook                              after LoggerHook updates the current loss
VERY_LOW    AgreementHook                             after all parts are built
LOWEST      PlateauEarlyStoppingHook                  MMEngine's place for it
LOWEST      SummaryHook                               after the best checkpoint is written
LOWEST      ResumeHook                                last: its ``before_train`` runs a validation
=========== ========================================= =====================================================
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
from dcnzoo.openmmlab.hooks.seeds import NumberedBatches as NumberedBatches
from dcnzoo.openmmlab.hooks.summary import SummaryHook as SummaryHook
from dcnzoo.openmmlab.hooks.validation import BroadcastBuffersHook as BroadcastBuffersHook
from dcnzoo.openmmlab.hooks.validation import PlateauEarlyStoppingHook as PlateauEarlyStoppingHook

# key in default_hooks → hook; there, a config can replace a hook, or switch it off with None
DEFAULT_HOOKS = {
    "epoch_seed": {"type": "EpochSeedHook"},
    "finite_loss": {"type": "FiniteLossHook"},
    "progress": {"type": "ProgressHook"},
    "buffers": {"type": "BroadcastBuffersHook"},
    "checkpoint": {"type": "AtomicCheckpointHook", "interval": 1},
}
