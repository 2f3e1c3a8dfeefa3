_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
model = dict(backbone=dict(dcn='v1'))
optim_wrapper = dict(type='AmpOptimWrapper')
