_base_ = './mask-rcnn_r14_fpn_8e_shapes.py'
model = dict(backbone=dict(dcn='v3'))
default_hooks = dict(offsets=dict(type='OffsetStatisticsHook', interval=40))
