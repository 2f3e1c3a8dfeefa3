"""Coverage of OpenMMLab's models (docs/coverage.md)."""

from dcnzoo.openmmlab.registration import setup

setup()
