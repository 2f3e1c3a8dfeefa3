_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop-1024.py',
    '../_base_/schedules/schedule_3x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='ViTAdapter',
        vit=dict(
            model_name='vit_base_patch16_224',
            class_token=False,
            global_pool='avg',
            pre_norm=True,
            init_values=1.0),
        drop_path_rate=0.2,
        deform_num_heads=12,
        deform_ratio=0.5,
        window=[14, 14, None] * 4,
        pad_input=True,
        patch_bias=True,
        norm_eps=1e-5,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/'
            'uni-perceiver-base-L12-H768-224size-torch-pretrained_converted.pth')),
    neck=dict(in_channels=[768, 768, 768, 768]))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.65))
