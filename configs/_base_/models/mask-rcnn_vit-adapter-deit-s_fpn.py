_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', './vit-adapter-deit-s.py']
model = dict(backbone={{_base_.vit_adapter_s}}, neck=dict(in_channels=[384, 384, 384, 384]))
