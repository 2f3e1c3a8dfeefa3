"""MMDetection's FPN and PAFPN with ``dcn=True``; they replace MMDetection's in the registry."""

from __future__ import annotations

from typing import ClassVar

from mmdet.models import necks
from mmdet.registry import MODELS

from dcnzoo.compat import patches
from dcnzoo.openmmlab.models.dcn import deformable_like, parse_dcn


class _WithDCN:
    """Makes the neck's 3×3 output convolutions deformable; the 1×1 lateral convolutions are unchanged.

    ``dcn`` is True or ``'v2'`` (DCNv2), ``'v1'`` (DCN), ``'v3'``, ``'v4'`` or the dict of a layer; see
    :func:`dcnzoo.openmmlab.models.dcn.parse_dcn`.
    """

    output_convs: ClassVar[tuple[str, ...]] = ("fpn_convs",)

    def __init__(self, *args, dcn=None, **kwargs) -> None:
        dcn = parse_dcn(dcn, owner=type(self).__name__)
        super().__init__(*args, **kwargs)
        if dcn is None:
            return
        for name in self.output_convs:
            for module in getattr(self, name):
                module.conv = deformable_like(module.conv, dcn)


@patches.replace(MODELS, "takes dcn")
class FPN(_WithDCN, necks.FPN):
    pass


@patches.replace(MODELS, "takes dcn")
class PAFPN(_WithDCN, necks.PAFPN):
    output_convs = ("fpn_convs", "pafpn_convs")
