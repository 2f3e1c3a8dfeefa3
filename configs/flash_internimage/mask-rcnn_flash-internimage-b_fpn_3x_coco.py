_base_ = [
    '../_base_/models/mask-rcnn_flash-internimage-b_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/schedule_3x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
model = dict(backbone=dict(drop_path_rate=0.4))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(depths=[4, 4, 21, 4], layer_decay_rate=0.9, offset_lr_scale=0.01))
auto_scale_lr = dict(base_batch_size=64)
