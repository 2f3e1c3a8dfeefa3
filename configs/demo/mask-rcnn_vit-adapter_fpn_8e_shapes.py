# A small plain ViT with ViT-Adapter instead of the ResNet, from random weights
_base_ = './mask-rcnn_r14_fpn_8e_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ViTAdapter',
        vit=dict(
            model_name='vit_tiny_patch16_224',
            img_size=128,
            embed_dim=96,
            depth=4,
            num_heads=3,
            init_values=1.0),
        conv_inplane=16,
        deform_num_heads=3,
        deform_ratio=0.5,
        use_extra_extractor=False,
        out_indices=(1, 2)),
    neck=dict(in_channels=[96, 96]))
