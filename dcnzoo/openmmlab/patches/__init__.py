"""Patches of other packages: the table, and the functions that it applies."""
