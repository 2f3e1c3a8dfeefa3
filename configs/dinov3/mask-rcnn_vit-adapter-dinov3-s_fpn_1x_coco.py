_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='ViTAdapter',
        vit=dict(model_name='vit_small_patch16_dinov3_qkvb.lvd1689m'),
        pretrained=True,
        prefix_tokens=True,
        drop_path_rate=0.2,
        deform_num_heads=6,
        deform_ratio=0.5),
    neck=dict(in_channels=[384, 384, 384, 384]))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.7))
