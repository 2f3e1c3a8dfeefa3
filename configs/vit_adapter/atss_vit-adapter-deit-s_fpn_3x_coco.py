_base_ = [
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    '../_base_/models/vit-adapter-deit-s.py',
    '../_base_/datasets/ms-crop-1024_boxes.py',
    '../_base_/schedules/vit-adapter.py',
]
model = dict(
    backbone={{_base_.vit_adapter_s}},
    neck=dict(in_channels=[384, 384, 384, 384]))
optim_wrapper = {{_base_.adamw}}
train_dataloader = dict(dataset=dict(pipeline={{_base_.boxes_pipeline}}))
train_cfg = dict(max_epochs=36)
param_scheduler = {{_base_.steps_3x}}
# the head reads no map of stride 4, so that six tensors of the adapter have no gradient
find_unused_parameters = True
