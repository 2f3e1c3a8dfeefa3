# a variable, because detectors with different base configs use it
custom_imports = dict(imports=['dcnzoo.models'], allow_failed_imports=False)
vit_adapter_s = dict(
    _delete_=True,
    type='ViTAdapter',
    vit=dict(model_name='deit_small_patch16_224', init_values=1.0),
    pretrained=True,
    drop_path_rate=0.2,
    deform_num_heads=6,
    deform_ratio=1.0,
    window=[14, 14, None] * 4)
