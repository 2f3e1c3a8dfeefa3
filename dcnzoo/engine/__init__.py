"""Hooks for mmengine's Runner; importing the package registers them."""

import warnings

# Before the imports that cause it: mmengine and mmcv use pkg_resources, which is there (pinned).
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)

from dcnzoo.engine.checkpoint import AtomicCheckpointHook, AtomicLocalBackend  # noqa: E402
from dcnzoo.engine.offset_statistics import OffsetStatisticsHook  # noqa: E402
from dcnzoo.engine.progress import ProgressHook  # noqa: E402

__all__ = ["AtomicCheckpointHook", "AtomicLocalBackend", "OffsetStatisticsHook", "ProgressHook"]
