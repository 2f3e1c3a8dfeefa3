# Every process keeps a part of the parameters, gradients and optimizer state: docs/scale.md. A further base:
#   _base_ = ['./cascade-mask-rcnn_internimage-xl_fpn_3x_coco.py', '../_base_/fully_sharded.py']
runner_type = 'FlexibleRunner'
strategy = dict(type='FullyShardStrategy', shard=['Block'])  # (Flash)InternImage's blocks, one at a time
