_base_ = './mask-rcnn_r14_fpn_8e_shapes.py'
model = dict(backbone=dict(dcn='v1'))
# without modulation, offsets that learn at the rate of all did worse: docs/study.md
optim_wrapper = dict(paramwise_cfg=dict(dcn_offset_lr_mult=0.1))
default_hooks = dict(offsets=dict(type='OffsetStatisticsHook', interval=40))
