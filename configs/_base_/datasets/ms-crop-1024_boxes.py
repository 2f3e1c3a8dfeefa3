# as coco_instance_ms-crop-1024.py, without masks: a variable for detectors whose base has the data set
_base_ = './scales-or-crops.py'
boxes_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    {{_base_.scales_or_crops}},
    dict(type='RandomCrop', crop_type='absolute_range', crop_size=(1024, 1024), allow_negative_crop=True),
    dict(type='PackDetInputs'),
]
