# The model for your own pictures on a CPU: Mask R-CNN of 1.1 M parameters, DCNv2 in c3–c5. By itself, it learns
# generated shapes of 14 to 260 pixels: the weights from which `dcnzoo train --data` starts.
_base_ = [
    '../_base_/models/mask-rcnn_r14_fpn.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/schedule_8e.py',
    '../_base_/default_runtime.py',
]
strides = [8, 16, 32]
roi_extractor = dict(featmap_strides=strides)
model = dict(
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
    roi_head=dict(bbox_roi_extractor=roi_extractor, mask_roi_extractor=roi_extractor),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200)),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)))

data_root = 'data/shapes-320/'
shapes = dict(
    train=1500, val=60, size=320, max_instances=8, min_radius=7.0, max_radius=130.0, seed=5)
size = (320, 320)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    # of larger pictures: a step takes the same time at every size
    dict(type='RandomCrop', crop_size=size, allow_negative_crop=True, recompute_bbox=True),
    # objects whose box is in the crop, but not their polygon; keep_empty: the picture stays
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2), keep_empty=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=4, dataset=dict(data_root=data_root, shapes=shapes, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, dataset=dict(data_root=data_root, shapes=shapes, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

max_epochs = 10
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
