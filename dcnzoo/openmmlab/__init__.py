"""All that imports mmengine, mmcv or mmdet: patches, registered classes, loading, export of detectors."""

import warnings

# mmengine and mmcv import pkg_resources, which setuptools 80, pinned for them, announces as deprecated
warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
