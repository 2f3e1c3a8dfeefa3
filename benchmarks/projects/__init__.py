"""Runs of other projects' code on dcnzoo's operators (docs/benchmarks/projects.md)."""
