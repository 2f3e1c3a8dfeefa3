"""Coverage of OpenMMLab's models (docs/coverage.md)."""

from dcnzoo.openmmlab.setup import setup

setup()
