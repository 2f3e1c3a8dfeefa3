"""Export of MMDetection's detectors. Start with ``export.py``; the map of what is traced is ``rules.py``."""
