# Mask R-CNN small enough to learn from scratch in minutes on a CPU: Bottleneck ResNet of three
# stages (c2–c4) with 16 base channels, FPN on c3 and c4, light heads: 0.56 M parameters.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
num_classes = 3
base_channels = 16
fpn_channels = 48
strides = [8, 16]
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(mean=[125., 125., 125.], std=[60., 60., 60.]),
    backbone=dict(
        depth=14,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
        stem_channels=base_channels,
        base_channels=base_channels,
        frozen_stages=-1,
        norm_cfg=norm_cfg,
        norm_eval=False,
        zero_init_residual=False,
        init_cfg=None,
        stage_with_dcn=(True, True, True)),  # where dcn=True puts it
    neck=dict(
        in_channels=[base_channels * 8, base_channels * 16],
        out_channels=fpn_channels,
        num_outs=2,
        norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=fpn_channels,
        feat_channels=fpn_channels,
        anchor_generator=dict(scales=[4, 8], ratios=[1.0], strides=strides)),
    roi_head=dict(
        # finest_scale=64: RoIs below 128 px, that is all but a few, are read from stride 8
        bbox_roi_extractor=dict(
            out_channels=fpn_channels,
            featmap_strides=strides,
            finest_scale=64,
            roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=fpn_channels, fc_out_channels=128, num_classes=num_classes),
        mask_roi_extractor=dict(
            out_channels=fpn_channels,
            featmap_strides=strides,
            finest_scale=64,
            roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(
            num_convs=1,
            in_channels=fpn_channels,
            conv_out_channels=fpn_channels,
            num_classes=num_classes)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=100, max_per_img=48),
        rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=48)))
