"""tvdcn's names on dcnzoo's operators: ``import dcnzoo.compat.tvdcn as tvdcn`` is the whole change.

Checked against tvdcn 1.1.0. Functions and layers are dcnzoo's own, whose arguments and layouts are tvdcn's;
the packed layers take tvdcn's arguments (:mod:`dcnzoo.compat.tvdcn.ops`).
"""

from dcnzoo.compat.tvdcn import ops
from dcnzoo.compat.tvdcn.ops import *  # noqa: F403
from dcnzoo.ops import has_ops, with_cuda

__all__ = ["has_ops", "ops", "with_cuda", *ops.__all__]
