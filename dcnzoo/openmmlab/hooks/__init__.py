"""Hooks and a strategy for mmengine's Runner; importing the package registers them."""

import warnings

# Before the imports that cause it: mmengine and mmcv use pkg_resources, which is there (pinned).
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)

from dcnzoo.openmmlab.hooks.checkpoint import AtomicCheckpointHook, AtomicLocalBackend  # noqa: E402
from dcnzoo.openmmlab.hooks.finite_loss import FiniteLossHook  # noqa: E402
from dcnzoo.openmmlab.hooks.offset_statistics import OffsetStatisticsHook  # noqa: E402
from dcnzoo.openmmlab.hooks.progress import ProgressHook  # noqa: E402
from dcnzoo.openmmlab.hooks.seeds import EpochSeedHook  # noqa: E402
from dcnzoo.openmmlab.sharding import FullyShardStrategy  # noqa: E402

__all__ = [
    "AtomicCheckpointHook",
    "AtomicLocalBackend",
    "EpochSeedHook",
    "FiniteLossHook",
    "FullyShardStrategy",
    "OffsetStatisticsHook",
    "ProgressHook",
]
