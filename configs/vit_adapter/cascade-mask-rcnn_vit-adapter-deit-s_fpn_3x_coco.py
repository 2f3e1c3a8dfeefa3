_base_ = [
    '../_base_/models/cascade-mask-rcnn_4conv1fc-giou_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop-1024.py',
    '../_base_/schedules/schedule_3x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='ViTAdapter',
        vit=dict(model_name='deit_small_patch16_224', init_values=1.0),
        pretrained=True,
        drop_path_rate=0.2,
        deform_num_heads=6,
        deform_ratio=1.0,
        window=[14, 14, None] * 4),
    neck=dict(in_channels=[384, 384, 384, 384]))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            name: dict(decay_mult=0.0) for name in ('level_embed', 'pos_embed', 'norm', 'bias')
        }))
