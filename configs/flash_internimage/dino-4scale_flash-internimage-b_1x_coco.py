_base_ = '../_base_/dino-4scale_12e_coco.py'
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
pretrained = 'https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_b_1k_224.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='FlashInternImage',
        channels=112,
        depths=[4, 4, 21, 4],
        groups=[7, 14, 28, 56],
        drop_path_rate=0.3,
        layer_scale=1.0,
        offset_scale=0.5,
        post_norm=True,
        dw_kernel_size=3,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint=pretrained)),
    neck=dict(in_channels=[224, 448, 896]))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(depths=[4, 4, 21, 4], layer_decay_rate=0.9),
    clip_grad=dict(max_norm=0.1, norm_type=2))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
