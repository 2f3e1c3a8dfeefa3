"""Configs as values: what they contain and may contain, their mistakes, types and paths. Nothing is built."""
