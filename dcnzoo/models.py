"""The plugin's public name: ``custom_imports = dict(imports=['dcnzoo.models'])``.

Importing it registers dcnzoo's classes with OpenMMLab: see :mod:`dcnzoo.openmmlab.models`.
"""

from dcnzoo.openmmlab.models import *  # noqa: F403
from dcnzoo.openmmlab.models import __all__ as __all__
