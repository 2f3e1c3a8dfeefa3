"""The operators, as functions. Needs torch only."""

from ._library import cpu_capability, has_ops, problems, with_cuda

if has_ops():
    from .deform_conv import deform_conv2d
    from .deform_roi_pool import deform_roi_pool
    from .nms import nms
    from .roi_align import roi_align
else:
    # has_ops() must be callable on a broken installation; any operator says what is wrong.
    def __getattr__(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"dcnzoo has no compiled operators: {problems['cpu']}")


__all__ = ["cpu_capability", "deform_conv2d", "deform_roi_pool", "has_ops", "nms", "roi_align", "with_cuda"]
