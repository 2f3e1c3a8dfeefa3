_base_ = './mask-rcnn_vit-adapter-augreg-l_fpn_3x_coco.py'
# as in the authors' configuration, tests normalise by ImageNet's mean and deviation, the training by 127.5
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(vit='vit_large_patch14_dinov2'))
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    {{_base_.scales_or_crops}},
    dict(type='RandomCrop', crop_type='absolute_range', crop_size=(1024, 1024), allow_negative_crop=True),
    # with the model's normalisation, the result is (value - 127.5) / 127.5; blue, green, red
    dict(type='Normalize', to_rgb=False,
         mean=[127.5 - 127.5 * 103.53 / 57.375, 127.5 - 127.5 * 116.28 / 57.12, 127.5 - 127.5 * 123.675 / 58.395],
         std=[127.5 / 57.375, 127.5 / 57.12, 127.5 / 58.395]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.65))
