"""What OpenMMLab's tools expect to find under this name in every package."""


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register what configs name; ``mmengine.hub.get_model('dcnzoo::…')`` calls this.

    Args:
        init_default_scope: build what has no scope of its own from MMDetection's registries, where
            dcnzoo's classes are.
    """
    import time

    from mmengine.registry import DefaultScope

    import dcnzoo.models  # noqa: F401  before mmdet, which needs mmcv.ops

    # isort: split
    from mmdet.utils import register_all_modules as register_mmdet

    register_mmdet(init_default_scope=False)
    if init_default_scope:
        DefaultScope.get_instance(f"dcnzoo-{time.time()}", scope_name="mmdet")
