_base_ = './mask-rcnn_vit-adapter-deit-s_fpn_3x_coco.py'
model = dict(backbone=dict(vit='vit_small_patch14_dinov2'))
optim_wrapper = dict(
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(_delete_=True, num_layers=12, layer_decay_rate=0.7))
