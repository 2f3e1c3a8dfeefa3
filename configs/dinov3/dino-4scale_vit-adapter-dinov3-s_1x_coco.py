_base_ = './dino-4scale_frozen-dinov3-s_1x_coco.py'
model = dict(
    backbone=dict(
        drop_path_rate=0.2,
        frozen=False,
        injectors=True,
        stage_maps=False,
        final_norm=False))
optim_wrapper = dict(
    constructor='CustomLayerDecayOptimizerConstructor',
    paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.7))
