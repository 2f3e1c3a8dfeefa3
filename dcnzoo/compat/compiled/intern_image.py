"""``DCNv3``, the compiled module of InternImage.

The import of this file also adds the package DCNv3 to ``pkg_resources``, where InternImage's ``ops_dcnv3``
reads the version. From version 1.1 on, the functions have the argument ``remove_center``.
"""

import warnings
from importlib import import_module
from importlib.util import find_spec

from dcnzoo.compat.compiled.dcnv3 import dcnv3_backward, dcnv3_forward

__all__ = ["dcnv3_backward", "dcnv3_forward"]


def _add_version() -> None:
    """Add the package DCNv3 to ``pkg_resources``, if that is installed."""
    if find_spec("pkg_resources") is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        resources = import_module("pkg_resources")
    version = resources.Distribution(project_name="DCNv3", version="1.1")
    resources.working_set.by_key.setdefault(version.key, version)


_add_version()
