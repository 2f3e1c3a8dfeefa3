"""All code that imports mmengine, mmcv or mmdet: patches, registered classes, loading, detector export."""

import warnings

# mmengine and mmcv import pkg_resources; setuptools 80, the version pinned for them, warns on every import
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
