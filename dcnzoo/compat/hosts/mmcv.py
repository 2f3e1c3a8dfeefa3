"""mmcv's compiled module, for mmcv-lite. ``import dcnzoo`` always provides it."""

from dcnzoo.compat.host import Evidence, Host

HOSTS = (
    Host(
        "mmcv._ext",
        {
            "OpenMMLab's packages": Evidence(
                "mmdet 3.3.0 and others", "2026-11-23", "[training steps](coverage.md)"
            ),
            "Co-DETR": Evidence("26653521e47157fdd819e764b4bb949057ea9f3b", "2026-11-26", "losses"),
        },
        ("dcnzoo.compat.mmcv._ext",),
    ),
)
