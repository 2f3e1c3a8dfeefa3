"""tvdcn's names on dcnzoo's operators. The only change in your code: ``import dcnzoo.compat.tvdcn as tvdcn``.

Checked against tvdcn 1.1.0, whose arguments are those of every version from 0.5 on. Functions and layers are
dcnzoo's own; the packed layers take tvdcn's arguments (:mod:`dcnzoo.compat.tvdcn.ops`).
"""

from dcnzoo.compat.tvdcn import ops
from dcnzoo.compat.tvdcn.ops import *  # noqa: F403
from dcnzoo.ops import has_ops, with_cuda

__all__ = ["has_ops", "ops", "with_cuda", *ops.__all__]
