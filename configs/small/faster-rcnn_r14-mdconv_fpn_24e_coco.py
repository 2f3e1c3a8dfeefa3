# Faster R-CNN of 1 M parameters, DCNv2 in c3–c5: for boxes of your own, from random weights, on a CPU. Images
# are resized to 416 px; objects of 20 to 400 px are found there.
_base_ = [
    '../_base_/models/mask-rcnn_r14_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_8e.py',
    '../_base_/default_runtime.py',
]
num_classes = 80
strides = [8, 16, 32]
model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(pad_mask=False),
    backbone=dict(
        num_stages=4,
        strides=(1, 2, 2, 2),
        dilations=(1, 1, 1, 1),
        out_indices=(1, 2, 3),
        stage_with_dcn=(False, True, True, True),
        dcn=True),
    neck=dict(in_channels=[128, 256, 512], num_outs=4),
    rpn_head=dict(
        anchor_generator=dict(scales=[3, 5], ratios=[0.5, 1.0, 2.0], strides=[*strides, 64])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=strides),
        bbox_head=dict(num_classes=num_classes),
        mask_roi_extractor=None,
        mask_head=None),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(
        rpn=dict(nms_pre=400, max_per_img=200)))

scale = (416, 416)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs,
         eta_min_ratio=0.02, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=20))

# Offsets learn at a tenth of the rate: AdamW moves every weight by about lr in a step, and the
# hundreds of weights behind one offset, moving together, would throw its sampling point about.
optim_wrapper = dict(paramwise_cfg=dict(dcn_offset_lr_mult=0.1))
