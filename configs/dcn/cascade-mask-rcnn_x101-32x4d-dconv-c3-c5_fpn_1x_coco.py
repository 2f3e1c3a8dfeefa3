_base_ = 'mmdet::cascade_rcnn/cascade-mask-rcnn_x101-32x4d_fpn_1x_coco.py'
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
model = dict(backbone=dict(dcn='v1'))
