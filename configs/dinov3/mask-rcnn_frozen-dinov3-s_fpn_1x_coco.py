_base_ = './mask-rcnn_vit-adapter-dinov3-s_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        drop_path_rate=0.0,
        frozen=True,
        injectors=False,
        stage_maps=True,
        final_norm=True))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))
