_base_ = './cascade-mask-rcnn_4conv1fc-giou_fpn.py'
pretrained = 'https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='FlashInternImage',
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.4,
        layer_scale=1.0,
        offset_scale=2.0,
        post_norm=True,
        dw_kernel_size=3,
        mlp_fc2_bias=True,
        dcn_output_bias=True,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[160, 320, 640, 1280], norm_cfg=dict(type='LN2d', requires_grad=True)))
