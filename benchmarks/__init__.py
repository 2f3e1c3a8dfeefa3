"""Measurements of dcnzoo (README.md). Nothing here is installed."""
