# Five epochs of 160 iterations at batch 4: small batches buy steps, and the moving average of the
# weights (which is what is evaluated and saved) takes out the noise that they bring.
max_epochs = 5
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=1e-2),
    clip_grad=dict(max_norm=5))
auto_scale_lr = dict(enable=False, base_batch_size=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, T_max=max_epochs,
         eta_min_ratio=0.02, convert_to_iter_based=True),
]
custom_hooks = [dict(type='EMAHook', momentum=0.02, update_buffers=True)]
