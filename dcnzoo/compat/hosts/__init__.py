"""What other projects need, by the compiled module that they miss: :class:`Host` objects.

To add one, write an entry in ``compiled.py``, one in ``benchmarks/projects/models.py`` and a test in
``tests/compat``; then run ``python docs/hosts.py``.
"""
