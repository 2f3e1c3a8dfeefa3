# in float32; the authors train ATSS, GFL, Cascade Mask R-CNN and MAE's Mask R-CNN in fp16, as `--amp` does
# variables for schedules, and for detectors whose base config has a schedule
# norms, biases and positions have no weight decay
adamw = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            name: dict(decay_mult=0.0) for name in ('level_embed', 'pos_embed', 'norm', 'bias')
        }))
steps_3x = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
