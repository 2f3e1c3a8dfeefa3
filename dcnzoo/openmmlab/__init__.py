"""All that imports mmengine, mmcv or mmdet: patches, registered classes, loading, export of detectors."""
