# A small FlashInternImage instead of the ResNet, DCNv4 in every block: 0.8 M parameters in all
_base_ = './mask-rcnn_r14_fpn_8e_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='FlashInternImage',
        channels=32,
        depths=[1, 1, 1],
        groups=[2, 4, 8],
        drop_path_rate=0.0,
        layer_scale=1.0,
        offset_scale=1.0,
        out_indices=(1, 2)),
    neck=dict(in_channels=[64, 128]))
default_hooks = dict(offsets=dict(type='OffsetStatisticsHook', interval=40))
