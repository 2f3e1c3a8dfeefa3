"""Helpers for all other packages of dcnzoo: errors, files, downloads. They do not import these packages."""
