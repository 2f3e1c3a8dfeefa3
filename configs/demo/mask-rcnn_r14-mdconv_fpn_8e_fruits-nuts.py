# DCNv2, from the weights for generated shapes
_base_ = './mask-rcnn_r14_fpn_8e_fruits-nuts.py'
model = dict(backbone=dict(dcn=True))
default_hooks = dict(offsets=dict(type='OffsetStatisticsHook', interval=40))
load_from = '{{ fileDirname }}/weights/mask-rcnn_r14-mdconv_fpn_8e_shapes-baf4941b.safetensors'
