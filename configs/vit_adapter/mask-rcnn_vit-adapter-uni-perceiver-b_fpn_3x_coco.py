_base_ = './mask-rcnn_vit-adapter-deit-b_fpn_3x_coco.py'
model = dict(
    backbone=dict(
        vit=dict(
            model_name='vit_base_patch16_224',
            class_token=False,
            global_pool='avg',
            pre_norm=True),
        pretrained=False,
        drop_path_rate=0.2,
        pad_input=True,
        patch_bias=True,
        norm_eps=1e-5,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/czczup/ViT-Adapter/releases/download/v0.3.1/'
            'uni-perceiver-base-L12-H768-224size-torch-pretrained_converted.pth')))
optim_wrapper = dict(
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(_delete_=True, num_layers=12, layer_decay_rate=0.65))
