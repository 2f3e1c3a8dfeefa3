"""These are programs, not tests: ``make test-compilers``, ``test-matrix``, ``test-packaging``."""

collect_ignore_glob = ["test_*.py"]
