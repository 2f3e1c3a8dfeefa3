_base_ = [
    '../_base_/models/mask-rcnn_vit-adapter-deit-t_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/vit-adapter_1x.py',
    'mmdet::_base_/default_runtime.py',
]
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=0.01))
