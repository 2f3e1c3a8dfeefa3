"""Interfaces of other packages on dcnzoo's operators, and patches of other packages."""

from dcnzoo.compat.host import provide

__all__ = ["provide"]
