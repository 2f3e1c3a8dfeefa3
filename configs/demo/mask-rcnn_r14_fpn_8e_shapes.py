_base_ = [
    '../_base_/models/mask-rcnn_r14_fpn.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/schedule_8e.py',
    '../_base_/default_runtime.py',
]
default_hooks = dict(logger=dict(interval=20))
log_processor = dict(window_size=20)
