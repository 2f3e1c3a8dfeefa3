"""Runs of other projects' code on dcnzoo's operators (docs/hosts.md)."""
