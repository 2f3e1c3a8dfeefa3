"""Measurements of dcnzoo (README.md). Nothing here is installed."""

import dcnzoo as dcnzoo  # first: provides mmcv._ext
