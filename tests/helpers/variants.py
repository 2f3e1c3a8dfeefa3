"""The demo's detector with other settings."""

from mmengine.config import Config

from tests.helpers import demo


def settings_of(classes=None, **backbone):
    cfg = Config.fromfile(demo.DEFORMABLE)
    cfg.model.backbone.update(backbone)
    if classes:
        for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
            head.num_classes = classes
    return cfg.model


def build(classes=None, **backbone):
    return demo.build(settings_of(classes, **backbone))
