import dcnzoo  # noqa: F401  before any test imports mmcv.ops, which needs the compiled module
