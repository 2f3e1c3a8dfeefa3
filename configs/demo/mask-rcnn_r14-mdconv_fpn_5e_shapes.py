_base_ = './mask-rcnn_r14_fpn_5e_shapes.py'
model = dict(backbone=dict(dcn=True))
