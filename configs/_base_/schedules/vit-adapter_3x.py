_base_ = './vit-adapter_1x.py'
train_cfg = dict(max_epochs=36)
param_scheduler = {{_base_.steps_3x}}
