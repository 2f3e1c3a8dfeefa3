"""Replacements of functions of MMDetection and mmcv, for tracing. A negative score marks unused boxes."""
