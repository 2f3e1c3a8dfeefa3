"""Interfaces of other packages, implemented with dcnzoo's operators, and patches for other packages."""

from dcnzoo.compat.compiled import provide

__all__ = ["provide"]
