_base_ = [
    '../_base_/models/mask-rcnn_vit-adapter-deit-b_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/vit-adapter_1x.py',
    'mmdet::_base_/default_runtime.py',
]
