"""All code that imports mmengine, mmcv or mmdet.

The modules in this folder handle a detector and its weights. The other parts, by subject:

- ``config``: read and check configs; ``options.py``: apply the options of a run to a config
- ``runs``: train, test or build a model
- ``models``, ``datasets``, ``hooks``: classes that configs name
- ``patches`` of OpenMMLab's packages, which ``registration.py`` applies
- ``export`` of detectors
"""


def setup() -> None:
    """Register dcnzoo's classes with OpenMMLab and apply the patches, as ``import dcnzoo.models`` does."""
    from dcnzoo.openmmlab import registration

    registration.setup()
