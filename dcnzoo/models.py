"""The plugin for OpenMMLab. A config loads it: ``custom_imports = dict(imports=['dcnzoo.models'])``.

The import registers dcnzoo's classes with OpenMMLab (:mod:`dcnzoo.openmmlab.models`).
"""

from dcnzoo.openmmlab.models import *  # noqa: F403
from dcnzoo.openmmlab.models import __all__ as __all__
from dcnzoo.openmmlab.registration import setup

setup()
