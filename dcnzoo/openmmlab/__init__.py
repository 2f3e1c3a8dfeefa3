"""All code that imports mmengine, mmcv or mmdet: patches, registered classes, loading, detector export."""

from dcnzoo.compat.patches import add
from dcnzoo.openmmlab.patches.other_packages import NUMPY_1_NAMES

add(NUMPY_1_NAMES)  # before mmdet is imported; setup.setup() adds the others
