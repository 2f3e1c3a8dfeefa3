# mask-rcnn_vit-adapter_fpn_8e_shapes.py without the adapter
_base_ = "../configs/demo/mask-rcnn_vit-adapter_fpn_8e_shapes.py"
custom_imports = dict(imports=["dcnzoo.models", "benchmarks.plain_vit"], allow_failed_imports=False)
model = dict(backbone=dict(type="PlainViT"))
