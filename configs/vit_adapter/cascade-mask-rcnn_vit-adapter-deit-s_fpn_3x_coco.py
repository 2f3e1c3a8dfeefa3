_base_ = [
    '../_base_/models/cascade-mask-rcnn_4conv1fc-giou_fpn.py',
    '../_base_/models/vit-adapter-deit-s.py',
    '../_base_/datasets/coco_instance_ms-crop-1024.py',
    '../_base_/schedules/vit-adapter_3x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(backbone={{_base_.vit_adapter_s}}, neck=dict(in_channels=[384, 384, 384, 384]))
