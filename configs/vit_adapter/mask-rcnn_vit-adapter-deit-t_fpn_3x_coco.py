_base_ = [
    '../_base_/models/mask-rcnn_vit-adapter-deit-t_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop-1024.py',
    '../_base_/schedules/vit-adapter_3x.py',
    'mmdet::_base_/default_runtime.py',
]
