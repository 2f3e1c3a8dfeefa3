_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='ViTAdapter',
        vit=dict(model_name='vit_small_patch16_dinov3_qkvb.lvd1689m'),
        pretrained=True,
        prefix_tokens=True,
        frozen=True,
        injectors=False,
        stage_maps=True,
        final_norm=True,
        deform_num_heads=6,
        deform_ratio=0.5,
        out_indices=(1, 2, 3)),
    neck=dict(in_channels=[384, 384, 384]))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2))
