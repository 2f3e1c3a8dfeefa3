"""All code that imports mmengine, mmcv or mmdet.

The modules in this folder are about a detector and its weights. The others, by subject:

- ``config``: what a config contains, its mistakes; ``options.py``: what the options of a run change in it
- ``runs``: a training, a test, or a model that is built
- ``models``, ``datasets``, ``hooks``: classes that configs name
- ``patches`` of OpenMMLab's packages, which ``registration.py`` applies
- ``export`` of detectors
"""


def setup() -> None:
    """Register dcnzoo's classes with OpenMMLab and apply the patches, as ``import dcnzoo.models`` does."""
    from dcnzoo.openmmlab import registration

    registration.setup()
