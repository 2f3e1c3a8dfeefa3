_base_ = './mask-rcnn_vit-adapter-augreg-l_fpn_3x_coco.py'
model = dict(backbone=dict(vit='vit_large_patch14_dinov2'))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.65))
