_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r101_fpn_1x_coco.py'
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
model = dict(backbone=dict(dcn='v1'))
