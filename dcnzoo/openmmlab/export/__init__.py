"""Export of MMDetection's detectors."""
