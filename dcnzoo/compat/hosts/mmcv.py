"""mmcv's compiled module, for mmcv-lite. ``import dcnzoo`` always provides it."""

from dcnzoo.compat.host import RUN, Host

HOSTS = (
    Host(
        "mmcv._ext",
        {"OpenMMLab's packages": "2026-11, mmdet 3.3.0 and others", "Co-DETR": RUN, "ViT-Adapter": RUN},
        ("dcnzoo.compat.mmcv._ext",),
    ),
)
