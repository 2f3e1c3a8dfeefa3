"""What other projects need, by the compiled module that they miss: one file of :class:`Host` objects each.

To add one, write a file here and a test in ``tests/compat``; then run ``python docs/hosts.py``.
"""
