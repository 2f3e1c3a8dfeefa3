"""Hooks and a strategy for mmengine's Runner; importing the package registers them."""

import warnings

# Before the imports that cause it: mmengine and mmcv use pkg_resources, which is there (pinned).
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)

from dcnzoo.engine.checkpoint import AtomicCheckpointHook, AtomicLocalBackend  # noqa: E402
from dcnzoo.engine.losses import FiniteLossHook  # noqa: E402
from dcnzoo.engine.offset_statistics import OffsetStatisticsHook  # noqa: E402
from dcnzoo.engine.progress import ProgressHook  # noqa: E402
from dcnzoo.engine.seeds import EpochSeedHook  # noqa: E402
from dcnzoo.engine.sharding import FullyShardStrategy  # noqa: E402

__all__ = [
    "AtomicCheckpointHook",
    "AtomicLocalBackend",
    "EpochSeedHook",
    "FiniteLossHook",
    "FullyShardStrategy",
    "OffsetStatisticsHook",
    "ProgressHook",
]
