_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance_lsj.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)]),
    backbone=dict(
        _delete_=True,
        type='ViTAdapter',
        vit='vit_base_patch16_224.mae',
        pretrained=True,
        drop_path_rate=0.1,
        deform_num_heads=12,
        deform_ratio=0.5,
        window=[14, 14, None] * 4,
        use_extra_extractor=False),
    neck=dict(in_channels=[768, 768, 768, 768], norm_cfg=dict(type='SyncBN')),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=dict(type='SyncBN')),
        mask_head=dict(norm_cfg=dict(type='SyncBN'))))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            name: dict(decay_mult=0.0) for name in ('level_embed', 'pos_embed', 'norm', 'bias')
        }))
train_cfg = dict(max_epochs=25)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2000),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=25, T_max=25, eta_min=0, convert_to_iter_based=True),
]
