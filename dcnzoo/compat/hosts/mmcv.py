"""mmcv's compiled module, for mmcv-lite. ``import dcnzoo`` always provides it."""

from dcnzoo.compat.host import Host

HOSTS = (
    Host(
        "mmcv._ext",
        {"OpenMMLab's packages": "", "Co-DETR": "", "ViT-Adapter": ""},
        ("dcnzoo.compat.mmcv._ext",),
    ),
)
