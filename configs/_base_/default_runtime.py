_base_ = 'mmdet::_base_/default_runtime.py'
# dcnzoo.models is the plugin; the others register the hooks and the generated data set used below
custom_imports = dict(
    imports=['dcnzoo.models', 'dcnzoo.openmmlab.hooks', 'dcnzoo.openmmlab.datasets'], allow_failed_imports=False)
default_hooks = dict(
    checkpoint=dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=2),
    epoch_seed=dict(type='EpochSeedHook'),
    finite_loss=dict(type='FiniteLossHook'),
    progress=dict(type='ProgressHook'))
