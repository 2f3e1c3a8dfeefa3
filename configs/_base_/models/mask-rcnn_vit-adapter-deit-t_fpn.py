_base_ = './mask-rcnn_vit-adapter-deit-s_fpn.py'
model = dict(
    backbone=dict(vit=dict(model_name='deit_tiny_patch16_224'), drop_path_rate=0.1),
    neck=dict(in_channels=[192, 192, 192, 192]))
