_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
pretrained = 'https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_b_1k_224.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='FlashInternImage',
        channels=112,
        depths=[4, 4, 21, 4],
        groups=[7, 14, 28, 56],
        drop_path_rate=0.3,
        layer_scale=1.0,
        offset_scale=0.5,
        post_norm=True,
        dw_kernel_size=3,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[112, 224, 448, 896], norm_cfg=dict(type='LN2d', requires_grad=True)))
