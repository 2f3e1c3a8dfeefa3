_base_ = ['mmdet::_base_/schedules/schedule_1x.py', './vit-adapter.py']
optim_wrapper = {{_base_.adamw}}
