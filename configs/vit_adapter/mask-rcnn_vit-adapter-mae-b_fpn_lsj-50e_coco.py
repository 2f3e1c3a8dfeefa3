_base_ = './mask-rcnn_vit-adapter-mae-b_fpn_lsj-25e_coco.py'
model = dict(backbone=dict(drop_path_rate=0.2))
train_cfg = dict(max_epochs=50)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2000),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=50, T_max=50, eta_min_ratio=0.01),
]
