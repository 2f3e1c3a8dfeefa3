_base_ = [
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py',
    '../_base_/models/vit-adapter-deit-s.py',
    '../_base_/datasets/ms-crop-1024_boxes.py',
    '../_base_/schedules/vit-adapter.py',
]
model = dict(
    backbone={{_base_.vit_adapter_s}},
    neck=dict(in_channels=[384, 384, 384, 384], start_level=0, add_extra_convs='on_output', num_outs=4))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            level_embed=dict(decay_mult=0.0),
            pos_embed=dict(decay_mult=0.0),
            norm=dict(decay_mult=0.0),
            bias=dict(decay_mult=0.0),
            rpn_head=dict(lr_mult=0.25, decay_mult=0.002))))
train_dataloader = dict(dataset=dict(pipeline={{_base_.boxes_pipeline}}))
train_cfg = dict(max_epochs=36)
param_scheduler = {{_base_.steps_3x}}
