_base_ = [
    '../_base_/models/mask-rcnn_vit-adapter-deit-b_fpn.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/vit-adapter_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchFixedSizePad', size=(1024, 1024), pad_mask=True)]),
    backbone=dict(vit='vit_base_patch16_224.mae', drop_path_rate=0.1, use_extra_extractor=False),
    neck=dict(norm_cfg=dict(type='SyncBN')),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=dict(type='SyncBN')),
        mask_head=dict(norm_cfg=dict(type='SyncBN'))))
train_cfg = dict(max_epochs=25)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2000),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=25, T_max=25, eta_min_ratio=0.01),
]
