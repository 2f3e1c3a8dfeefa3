# Eight epochs of 80 iterations at batch 8. The evaluated and saved weights are a moving average, which
# reduces the noise of small batches. A validation takes about half as long as an epoch of training.
max_epochs = 8
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=1e-2),
    clip_grad=dict(max_norm=5))
auto_scale_lr = dict(enable=False, base_batch_size=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs,
         eta_min_ratio=0.02, convert_to_iter_based=True),
]
custom_hooks = [dict(type='EMAHook', momentum=0.02, update_buffers=True)]
