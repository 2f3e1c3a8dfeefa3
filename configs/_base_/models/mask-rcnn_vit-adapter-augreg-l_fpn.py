_base_ = './mask-rcnn_vit-adapter-deit-s_fpn.py'
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(
        vit=dict(model_name='vit_large_patch16_384.augreg_in21k_ft_in1k'),
        drop_path_rate=0.4,
        deform_num_heads=16,
        deform_ratio=0.5,
        window=[14, 14, 14, 14, 14, None] * 4),
    neck=dict(in_channels=[1024, 1024, 1024, 1024]))
