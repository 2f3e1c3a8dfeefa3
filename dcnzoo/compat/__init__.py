"""Interfaces of other packages on dcnzoo's operators, and patches of other packages."""

from dcnzoo.compat.compiled import provide

__all__ = ["provide"]
