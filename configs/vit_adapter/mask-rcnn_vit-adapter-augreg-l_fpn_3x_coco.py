_base_ = [
    '../_base_/models/mask-rcnn_vit-adapter-augreg-l_fpn.py',
    '../_base_/datasets/coco_instance_ms-crop-1024.py',
    '../_base_/schedules/vit-adapter_3x.py',
    'mmdet::_base_/default_runtime.py',
]
optim_wrapper = dict(
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(_delete_=True, num_layers=24, layer_decay_rate=0.8))
