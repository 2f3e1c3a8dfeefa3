_base_ = './mask-rcnn_vit-adapter-deit-s_fpn.py'
model = dict(
    backbone=dict(
        vit=dict(model_name='deit_base_patch16_224'),
        drop_path_rate=0.3,
        deform_num_heads=12,
        deform_ratio=0.5),
    neck=dict(in_channels=[768, 768, 768, 768]))
