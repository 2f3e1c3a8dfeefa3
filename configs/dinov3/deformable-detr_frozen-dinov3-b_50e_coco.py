_base_ = './deformable-detr_frozen-dinov3-s_50e_coco.py'
model = dict(
    backbone=dict(vit=dict(model_name='vit_base_patch16_dinov3_qkvb.lvd1689m'), deform_num_heads=12),
    neck=dict(in_channels=[768, 768, 768]))
